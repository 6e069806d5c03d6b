"""A full prompt of a few words, by a small language model: no word that was given is lost.

expander = Expander.load(Path("assets/toybox/language"))
expander.expand("fox, beach, neon", seed=7)     # "a cute fox on the beach in neon style"
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from composer.language.checkpoint import attach_checkpoints
from composer.language.complete import Asking, complete
from composer.language.load import LanguageModel, load_language_model
from composer.language.records import Record

TRIES = 8
TEMPERATURE = 0.8
TOKENS = 64
_FILLING = frozenset(("a", "an", "the", "and", "with", "in", "on", "at", "of", "style"))
_WORD = re.compile(r"[^\s,;]+")


def request(words: str) -> str:
    """How words are put to the model; it was taught in this form and knows no other."""
    return f"{' '.join(words.split())} =>"


def missing(words: str, prompt: str) -> list[str]:
    """The words given that do not stand in the prompt, as they were written.

    Case does not count, and neither do filling words such as "a" and "with".
    """
    there = {word.lower() for word in _WORD.findall(prompt)}
    return [
        word
        for word in _WORD.findall(words)
        if word.lower() not in there and word.lower() not in _FILLING
    ]


@dataclass(frozen=True, kw_only=True)
class Expander:
    """A language model taught to make prompts of words, with its adapter on it."""

    language: LanguageModel
    understood: Callable[[str], bool] | None = None
    """Whether a prompt is one of the world it is for; those that are go before others."""

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        adapter: Path | None = None,
        understood: Callable[[str], bool] | None = None,
    ) -> Expander:
        """From a model's folder; its adapter is the folder `adapter` in it unless another is given.

        Raises ComposerError for what cannot be loaded.
        """
        language = load_language_model(folder)
        attach_checkpoints(language.model, {"expand": adapter or folder / "adapter"})
        return cls(language=language, understood=understood)

    def expand(self, words: str, seed: int = 0) -> str:
        """A prompt that holds all words given; without any, one of the model's own.

        The same words and seed give the same prompt. Of several tries the best is taken: one that
        keeps all words and is of the world. Words that none has kept are put after the prompt.
        """
        tries = self.tries(words, seed)
        best = min(tries, key=lambda prompt: self._faults(words, prompt))
        left = missing(words, best)
        if len(left) > len(missing(words, "")) // 2:
            return " ".join(words.split())  # nothing of it was understood
        return ", ".join([best, *left])

    def tries(self, words: str, seed: int = 0, count: int = TRIES) -> list[str]:
        """What the model makes of the words, in so many tries."""
        record = Record(prompt=request(words), answer="")
        asking = Asking(tokens=TOKENS, temperature=TEMPERATURE, seed=seed)
        return complete(self.language, [record] * count, asking)

    def _faults(self, words: str, prompt: str) -> tuple[int, bool]:
        strange = self.understood is not None and not self.understood(prompt)
        return len(missing(words, prompt)), strange


def expand_prompt(
    words: str,
    seed: int = 0,
    *,
    folder: Path,
    understood: Callable[[str], bool] | None = None,
) -> str:
    """A full prompt of a few words, by the expander of that folder, which is loaded once."""
    return _loaded(folder, understood).expand(words, seed)


@lru_cache(maxsize=1)
def _loaded(folder: Path, understood: Callable[[str], bool] | None) -> Expander:
    return Expander.load(folder, understood=understood)
