"""How one low-rank adaptation is made: of an expert, or of an attention projection."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from composer.errors import ComposerError


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """D(x) = s · B A dropout(x), s = alpha / rank; the defaults are MixLoRA's (table 3).

    rslora: s = alpha / √rank (Kalajdzievski 2023).
    dora: a trained magnitude m for each output beside A and B (Liu et al. 2024):
        y = m / ‖W + s B A‖ · (W x + D(x)), the norm of each row, without a gradient.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ComposerError(f"The rank of a LoRA is {self.rank}: give 1 or more.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ComposerError(f"The alpha of a LoRA is {self.alpha}: give a number above 0.")
        if not 0.0 <= self.dropout < 1.0:
            raise ComposerError(
                f"The dropout of a LoRA is {self.dropout}: give 0 or more, below 1."
            )

    @property
    def scale(self) -> float:
        """s, what B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LoraSettings:
        """What `to_json` gave; ComposerError for a setting that is not known."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ComposerError(f"Unknown LoRA settings {', '.join(unknown)}: update Composer.")
        return cls(**values)
