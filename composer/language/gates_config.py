"""What gates over LoRAs of a language model are to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from composer.errors import ComposerError
from composer.language.parts import named_folders
from composer.mixture import GRANULARITIES, GateSettings, Granularity


@dataclass(frozen=True, kw_only=True)
class LoraGatesConfig:
    """Gates over frozen LoRAs; the defaults are MoLE's, with a gate that looks at the unit's input.

    loras: the folders of PEFT's that are the experts, two or more; each is known by its name.
    granularity: what one gate governs: the network, a block (a layer of the model), a layer (its
        attention or feed-forward) or a matrix.
    balance: alpha of the gating balance loss (equation 16).
    """

    loras: tuple[str, ...]
    granularity: Granularity = "block"
    gate: GateSettings = field(default_factory=GateSettings)
    balance: float = 0.5
    base_model: str = ""

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ComposerError(
                f"granularity {self.granularity!r} is unknown: choose one of"
                f" {', '.join(GRANULARITIES)}."
            )
        if len(self.loras) < 2:
            raise ComposerError(
                "Gates are for two LoRAs or more: give the folders of at least two."
            )
        named_folders([Path(folder) for folder in self.loras])
        if not (math.isfinite(self.balance) and self.balance >= 0):
            raise ComposerError(f"balance is {self.balance}: give 0 or more.")
