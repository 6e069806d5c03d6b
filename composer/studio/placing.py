"""A MixLoRA in a request: sparse experts in the model's FFNs, below the LoRAs that are added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from composer.errors import ComposerError
from composer.studio.requests import MIXLORA

if TYPE_CHECKING:
    from composer.fusions.mixlora_library import MixLoraCard


@dataclass(frozen=True, kw_only=True)
class Placing:
    """A MixLoRA as one picture uses it; hash: of the file."""

    card: MixLoraCard
    hash: str

    def told(self) -> dict[str, Any]:
        """For the picture's record; LoRAs beside it are added by their weights."""
        return {"name": MIXLORA, MIXLORA: self.card.name, "hash": self.hash}

    def notes(self, prompt: str) -> Iterator[str]:
        """What the user should know before the picture comes."""
        from composer.experts.triggers import without_words

        triggers = [one.trigger for one in self.card.sets]
        if all(without_words(prompt, trigger) is None for trigger in triggers):
            words = ", ".join(map(repr, triggers))
            yield f"{self.card.name}: none of its triggers is in the prompt. Write one of {words}."


@dataclass(frozen=True, kw_only=True)
class MixLoraOffer:
    """A MixLoRA that fits the model; what it has learned, by title and by trigger."""

    name: str
    titles: tuple[str, ...]
    triggers: tuple[str, ...]

    def knows(self, trigger: str) -> bool:
        """Whether it has learned what these words call."""
        wanted = trigger.strip().casefold()
        return bool(wanted) and wanted in (known.strip().casefold() for known in self.triggers)


def mixlora_offers(
    cards: Iterable[MixLoraCard], model: str, model_hash: str
) -> tuple[tuple[MixLoraOffer, ...], tuple[str, ...]]:
    """Those that can be used, and a line for each file that cannot."""
    found: list[MixLoraOffer] = []
    problems: list[str] = []
    for card in cards:
        if card.facts is None:
            problems.append(str(card.error))
            continue
        try:
            card.facts.check_model(model, model_hash)
        except ComposerError as error:
            problems.append(f"{card.path}: {error}")
            continue
        found.append(
            MixLoraOffer(
                name=card.name,
                titles=tuple(one.name for one in card.sets),
                triggers=tuple(one.trigger for one in card.sets),
            )
        )
    return tuple(found), tuple(problems)
