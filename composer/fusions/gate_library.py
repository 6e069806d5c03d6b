"""The gate files at hand: those in the folder `gates/` of each LoRA folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from composer.experts.library import GATES_FOLDER
from composer.fusions.gate_file import GatedExpert, GateFacts, read_facts
from composer.fusions.own_library import OwnCard, OwnLibrary


@dataclass(frozen=True, kw_only=True)
class GateCard(OwnCard[GateFacts]):
    """One gate file, without its tensors."""

    @property
    def experts(self) -> tuple[GatedExpert, ...]:
        """The experts that the gates are for; none where there is an error."""
        return self.facts.experts if self.facts is not None else ()


class GateLibrary(OwnLibrary[GateCard]):
    """Gate files by name.

    folders: LoRA folders; their folder `gates/` is looked into, where there is one.
    """

    def __init__(self, folders: Iterable[str | Path]) -> None:
        super().__init__(
            folders,
            place=GATES_FOLDER,
            card=GateCard,
            read=read_facts,
            unknown="Gates {name}: there are no such gates.",
            remedy="Train them, or put their file into",
        )
