"""What gates over LoRAs of a language model are to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from composer.errors import ComposerError
from composer.language.parts import named_folders
from composer.mixture import GateSettings, Granularity
from composer.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class LoraGatesConfig(Settings):
    """Gates over frozen LoRAs; the defaults are MoLE's, with a gate that looks at the unit's input.

    loras: the folders of PEFT's that are the experts, two or more; each is known by its name.
    granularity: what one gate governs: the network, a block (a layer of the model), a layer (its
        attention or feed-forward) or a matrix.
    balance: alpha of the gating balance loss (equation 16).
    """

    noun: ClassVar[str] = "settings of gates"

    loras: tuple[str, ...]
    granularity: Granularity = setting("block", help="What one gate governs.")
    gate: GateSettings = field(default_factory=GateSettings)
    balance: float = setting(0.5, at_least=0, help="Alpha of the gating balance loss.")
    base_model: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.loras) < 2:
            raise ComposerError(
                "Gates are for two LoRAs or more: give the folders of at least two."
            )
        named_folders([Path(folder) for folder in self.loras])
