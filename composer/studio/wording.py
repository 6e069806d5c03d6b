"""Full prompts of a few words, by a language model that is loaded when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from composer.diffusion.prompt import parse_prompt
from composer.errors import ComposerError
from composer.experts.triggers import has_words
from composer.language.paths import check_adapter, check_language_model

# PyTorch and transformers are imported where they are needed, so that the page answers meanwhile.
if TYPE_CHECKING:
    from composer.experts.card import Card
    from composer.language.expand import Expander

SHIPPED = Path(__file__).parents[2] / "assets" / "toybox" / "language"


class Wording:
    """Makes prompts of words, one at a time. Safe to use from several threads.

    It works beside the pictures: it has a model, a lock and random numbers of its own.

    model: a folder or a hub name; None takes the one that ships.
    adapter: what is put on it; without one, the folder `adapter` in the model's.
    card: finds a LoRA by its name.
    before: called before libraries and models are loaded; returns when it is time.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        adapter: str | Path | None = None,
        *,
        device: str = "cpu",
        card: Callable[[str], Card],
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self._model = SHIPPED if model is None else model
        self._adapter = None if adapter is None else Path(adapter).expanduser()
        self._device, self._card, self._before = device, card, before
        self._lock = threading.Lock()
        self._expander: Expander | None = None

    @property
    def problem(self) -> str:
        """Why no prompt can be made; empty if nothing is known to stand in the way."""
        try:
            self._check()
        except ComposerError as error:
            return str(error)
        return ""

    def expand(
        self,
        prompt: str,
        loras: Sequence[str] = (),
        *,
        triggers: bool = True,
        whole: Sequence[str] = (),
        seed: int = 0,
    ) -> str:
        """A full prompt that holds all words of this one, its tags, and the LoRAs' trigger words.

        loras: those chosen beside the prompt; the ones its tags name are among them anyway.
        triggers: False adds none; those that the prompt holds still come out whole.
        whole: further words that come out whole where the prompt holds them, a MixLoRA's triggers.

        The same words, LoRAs and seed give the same prompt.

        Raises:
            ComposerError: the model cannot be used, a LoRA is not there, a tag is broken, or the
                prompt is longer than the model reads.
        """
        self._check()
        parsed = parse_prompt(prompt)
        names = dict.fromkeys((*loras, *(tag.name for tag in parsed.loras)))
        known = dict.fromkeys(self._card(name).info.trigger.strip() for name in names)
        added = [words for words in known if words and triggers]
        there = [w for w in (*known, *whole) if w.strip(" ,") and has_words(parsed.text, w)]
        keep = [*dict.fromkeys((*added, *there))]
        self._before()
        with self._lock:
            if self._expander is None:
                self._expander = self._load()
            made = self._expander.expand(parsed.text, seed, keep=keep)
        return " ".join([made, *map(str, parsed.loras)]).strip()

    def _check(self) -> None:
        if self._model == SHIPPED and not (SHIPPED / "config.json").is_file():
            raise ComposerError(
                "The language model that ships is not here: make it with `python -m toybox build "
                "--stage language`, or name another with --language-model."
            )
        check_language_model(self._model)
        if self._adapter is not None:
            check_adapter(self._adapter)

    def _load(self) -> Expander:
        import torch

        from composer.diffusion.load import choose_device
        from composer.language.expand import Expander
        from toybox.words import WORDS

        device = choose_device(self._device)
        shipped = Path(self._model).expanduser().resolve() == SHIPPED.resolve()
        return Expander.load(
            self._model,
            adapter=self._adapter,
            understood=WORDS.is_understood if shipped and self._adapter is None else None,
            device=device,
            dtype=torch.bfloat16 if device.type == "cuda" and not shipped else torch.float32,
        )
