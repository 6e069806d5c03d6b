"""How one low-rank adaptation is made: of an expert, or of an attention projection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from composer.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """D(x) = s · B A dropout(x), s = alpha / rank; the defaults are MixLoRA's (table 3).

    rslora: s = alpha / √rank (Kalajdzievski 2023).
    dora: a trained magnitude m for each output beside A and B (Liu et al. 2024):
        y = m / ‖W + s B A‖ · (W x + D(x)), the norm of each row, without a gradient.
    """

    noun: ClassVar[str] = "LoRA settings"

    rank: int = setting(16, at_least=1, help="Width of the factors.")
    alpha: float = setting(32.0, above=0, help="Strength: what B A is multiplied by, times rank.")
    dropout: float = setting(0.05, at_least=0, below=1, help="Of each LoRA's input.")
    rslora: bool = setting(False, help="Scale by the root of the rank.")
    dora: bool = setting(False, help="Train magnitudes too (DoRA).")

    @property
    def scale(self) -> float:
        """s, what B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
