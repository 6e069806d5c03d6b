"""The MixLoRAs for pictures at hand: those in the folder `mixlora/` of each LoRA folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from composer.experts.library import MIXLORA_FOLDER
from composer.fusions.mixlora_file import LearnedSet, MixLoraFacts, read_mixlora_facts
from composer.fusions.own_library import OwnCard, OwnLibrary


@dataclass(frozen=True, kw_only=True)
class MixLoraCard(OwnCard[MixLoraFacts]):
    """One MixLoRA, without its tensors."""

    @property
    def sets(self) -> tuple[LearnedSet, ...]:
        """What it has learned; nothing where there is an error."""
        return self.facts.sets if self.facts is not None else ()


class MixLoraLibrary(OwnLibrary[MixLoraCard]):
    """MixLoRAs by name.

    folders: LoRA folders; their folder `mixlora/` is looked into, where there is one.
    """

    def __init__(self, folders: Iterable[str | Path]) -> None:
        super().__init__(
            folders,
            place=MIXLORA_FOLDER,
            card=MixLoraCard,
            read=read_mixlora_facts,
            unknown="MixLoRA {name}: there is no such MixLoRA.",
            remedy="Train one, or put its file into",
        )
