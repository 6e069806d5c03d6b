"""What the first page does to make a full prompt of a few words, and to take it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from composer.errors import ComposerError
from composer.experts.triggers import taken_back, with_words
from composer.fusions import read_recipe
from composer.outside import whole
from composer.studio import Studio
from composer.ui import views
from composer.ui.layout import Page

Update = dict[Any, Any]

SAME = "The model makes nothing more of these words."


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """A prompt that was expanded: what was typed, what was made of it, by which seed, for whom."""

    typed: str
    made: str
    seed: int
    loras: tuple[str, ...]

    @classmethod
    def read(cls, state: object) -> Expansion | None:
        """What the page keeps of the last one; it comes from a browser."""
        if not isinstance(state, Mapping):
            return None
        kept = cast("Mapping[str, Any]", state)
        if kept.get("phase") != "done":
            return None
        try:
            loras = tuple(str(name) for name in kept["loras"])
            seed = whole(kept["seed"]) % 2**32
            return cls(typed=str(kept["typed"]), made=str(kept["made"]), seed=seed, loras=loras)
        except (KeyError, TypeError, ValueError):
            return None

    def view(self) -> views.Json:
        """For the page: what it keeps, and what it shows."""
        return {"phase": "done", **vars(self), "loras": list(self.loras)}


class ExpandActions:
    """The actions of the button beside the prompt. They keep nothing."""

    def __init__(self, studio: Studio, page: Page) -> None:
        self._studio = studio
        self._page = page

    def offer(self) -> views.Json:
        """The button as it is at first: off, with the reason, where no model is there."""
        problem = self._studio.wording.problem
        return {"phase": "off", "note": problem} if problem else {"phase": "idle"}

    def expand(
        self, prompt: str | None, mixer: object, fusion: str, triggers: bool, state: object
    ) -> Iterator[Update]:
        """Make a full prompt of what is typed; of the same words once more, make another."""
        page, typed, seed = self._page, prompt or "", 0
        last = Expansion.read(state)
        if last is not None and last.made == typed:
            typed, seed = last.typed, last.seed + 1
        yield {page.expander: {"phase": "working"}}
        try:
            loras = tuple(row.name for row in views.read_rows(mixer, fusion) if row.active)
            whole = self._studio.triggers(read_recipe(fusion))
            made = self._studio.wording.expand(
                typed, loras, triggers=triggers, whole=whole, seed=seed
            )
        except Exception as error:
            note = views.failure(error, "a prompt was not expanded")
            yield {page.expander: {"phase": "failed", "note": note}}
        else:
            if made == typed:
                yield {page.expander: {"phase": "same", "note": SAME}}
                return
            expansion = Expansion(typed=typed, made=made, seed=seed, loras=loras)
            yield {page.prompt: made, page.expander: expansion.view()}

    def back(self, mixer: object, fusion: object, triggers: bool, state: object) -> Update:
        """Put back what was typed, with the trigger words of LoRAs that were chosen since."""
        page, last = self._page, Expansion.read(state)
        if last is None:
            return {page.expander: self.offer()}
        typed = last.typed
        if triggers:
            try:
                now = tuple(row.name for row in views.read_rows(mixer, fusion) if row.active)
                for name in (*last.loras, *now):
                    if (name in now) != (name in last.loras):
                        words = self._studio.card(name).info.trigger
                        typed = (
                            with_words(typed, [words]) if name in now else taken_back(typed, words)
                        )
            except ComposerError:
                pass  # a LoRA that is gone since has no words to add
        return {page.prompt: typed, page.expander: self.offer()}
