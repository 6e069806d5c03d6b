"""A full prompt of a few words, by a small language model: no word that was given is lost.

expander = Expander.load("assets/toybox/language")
expander.expand("fox, beach, neon", seed=7)     # "a cute fox on the beach in neon style"
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from composer.experts.triggers import has_words, with_words
from composer.language.complete import Asking, attach_adapter, complete
from composer.language.load import LanguageModel, load_language_model
from composer.language.phrases import missing
from composer.language.records import Record
from composer.language.template import uses_chat

TRIES = 8
ROUNDS = 3
TEMPERATURE = 0.8
TOKENS = 64
ORDER = (
    "Write the prompt of a picture: one line of at most forty words that holds all of the words "
    "below, with a place and a light if they name none. Answer with that line alone."
)


def request(words: str) -> str:
    """How words are put to a model that was trained to make prompts of them."""
    return f"{' '.join(words.split())} =>"


@dataclass(frozen=True, kw_only=True)
class Expander:
    """A language model that makes prompts of words."""

    language: LanguageModel
    trained: bool = True
    """Whether it was trained on "words =>" and the prompt to make of them. Of the others, one with
    a chat template is asked in words, and one without goes on from the words given."""
    understood: Callable[[str, str], bool] | None = None
    """Whether words became a prompt of the world it is for; such prompts go before others."""

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        adapter: Path | None = None,
        understood: Callable[[str, str], bool] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Expander:
        """From a model's folder or its name on the hub, with an adapter: the one given, or the
        folder `adapter` in the model's. A model with an adapter counts as trained.

        Raises ComposerError for what cannot be loaded.
        """
        within = Path(model).expanduser() / "adapter"
        language = load_language_model(model, device=device, dtype=dtype)
        adapter = adapter or (within if within.is_dir() else None)
        if adapter is not None:
            attach_adapter(language, adapter)
        return cls(language=language, trained=adapter is not None, understood=understood)

    def expand(self, words: str, seed: int = 0, *, keep: Sequence[str] = ()) -> str:
        """A prompt that holds all words given; without any, one of the model's own.

        keep: phrases that must stand in it as they are, a LoRA's trigger words.

        The same words and seed give the same prompt. Of several tries the best is taken: one that
        keeps all words and is of the world; while there is none, it is tried again, some rounds.
        Words that none has kept are put after the prompt, unless it is better to leave the words as
        they are: they make such a prompt, or no try did.
        """
        words = " ".join(with_words(words, keep).split())

        def faults(prompt: str) -> tuple[int, int, bool]:
            broken = sum(not has_words(prompt, phrase) for phrase in keep if phrase.strip())
            strange = self.understood is not None and not self.understood(words, prompt)
            return len(missing(words, prompt)), broken, strange

        made: list[str] = []
        best = words
        for turn in range(ROUNDS):
            made += self.tries(words, seed + turn * 2**32)
            best = min(made, key=faults)
            if not any(faults(best)):
                return best
            if len(missing(words, best)) > len(missing(words, "")) // 2:
                return words  # nothing of it was understood
        if self.understood is not None:
            # the words as they are do no harm, a prompt of no known world might
            best = min((best, words), key=lambda one: faults(one)[::-1])
        whole = with_words(best, keep)
        return ", ".join([whole, *missing(words, whole)])

    def tries(self, words: str, seed: int = 0, count: int = TRIES) -> list[str]:
        """What the model makes of the words, in so many tries."""
        asking = Asking(tokens=TOKENS, temperature=TEMPERATURE, seed=seed)
        if self.trained:
            record = Record(prompt=request(words), answer="")
        elif uses_chat(self.language.tokenizer, "auto"):
            record = Record(instruction=ORDER, input=words, answer="")
        else:
            record = Record(prompt=words, answer="")
            made = complete(self.language, [record] * count, asking)
            # complete() takes away the space, or its absence, at the seam
            return [_one_line(re.sub(r" (?=[,.;:!?])", "", f"{words} {more}")) for more in made]
        return [_one_line(made) for made in complete(self.language, [record] * count, asking)]


def _one_line(made: str) -> str:
    """The first line that is not empty, without the quotation marks that chat models like."""
    lines = [" ".join(line.split()) for line in made.splitlines() if line.strip()]
    first = lines[0] if lines else ""
    quoted = len(first) > 1 and first[0] == first[-1] and first[0] in "\"'"
    return first[1:-1].strip() if quoted else first
