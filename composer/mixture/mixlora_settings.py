"""What a MixLoRA adapter is, whatever model it is for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from composer.errors import ComposerError
from composer.mixture.ffn import FfnForm
from composer.mixture.lora_settings import LoraSettings
from composer.mixture.routers import RouterSettings
from composer.settings import Settings


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

    experts: LoraSettings = field(default_factory=LoraSettings)
    attention: LoraSettings | None = field(default_factory=LoraSettings)
    convolutions: LoraSettings | None = None
    router: RouterSettings = field(default_factory=RouterSettings)
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
