"""What a MixLoRA adapter is, whatever model it is for, and how one low-rank adaptation of it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from composer.errors import ComposerError
from composer.mixlora.ffn import FfnForm
from composer.mixlora.router import RouterSettings
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


@dataclass(frozen=True, kw_only=True)
class MixLoraSettings(Settings):
    """One MixLoRA adapter; the defaults are the paper's (table 3).

    experts: the LoRA of each expert of an FFN.
    attention: the LoRA of the attention's projections; None for none.
    convolutions: the LoRA of the convolutions in a U-Net's blocks and samplers; None for none.
    router: how many experts there are and how they are picked.
    target_modules: the names of the Linear modules to adapt, in FFNs and attention alike
        ("q_proj", "gate_proj", ...); None for all that are known.
    """

    noun: ClassVar[str] = "MixLoRA settings"

    experts: LoraSettings = setting(factory=LoraSettings)
    attention: LoraSettings | None = setting(factory=LoraSettings)
    convolutions: LoraSettings | None = None
    router: RouterSettings = setting(factory=RouterSettings)
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.convolutions is not None and self.convolutions.dora:
            raise ComposerError(
                "DoRA is for Linear modules alone: leave it out for the convolutions."
            )

    def check_ffn(self, name: str, path: str, form: FfnForm, ffn: nn.Module) -> None:
        """What more must be true of an FFN that gets experts of the adapter called `name`: nothing
        here.

        Raises:
            ComposerError: it is not.
        """
