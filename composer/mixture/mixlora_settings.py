"""What a MixLoRA adapter is, whatever model it is for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from composer.errors import ComposerError
from composer.mixture.ffn import FfnForm
from composer.mixture.lora_settings import LoraSettings
from composer.mixture.routers import RouterSettings


@dataclass(frozen=True, kw_only=True)
class MixLoraSettings:
    """One MixLoRA adapter; the defaults are the paper's (table 3).

    experts: the LoRA of each expert of an FFN.
    attention: the LoRA of the attention's projections; None for none.
    convolutions: the LoRA of the convolutions in a U-Net's blocks and samplers; None for none.
    router: how many experts there are and how they are picked.
    target_modules: the names of the Linear modules to adapt, in FFNs and attention alike
        ("q_proj", "gate_proj", ...); None for all that are known.
    """

    experts: LoraSettings = field(default_factory=LoraSettings)
    attention: LoraSettings | None = field(default_factory=LoraSettings)
    convolutions: LoraSettings | None = None
    router: RouterSettings = field(default_factory=RouterSettings)
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
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

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> MixLoraSettings:
        """What `to_json` gave; ComposerError for what cannot be used."""
        read = dict(values)
        for name in ("experts", "attention", "convolutions"):
            if read.get(name) is not None:
                read[name] = LoraSettings.from_json(read[name])
        if "router" in read:
            read["router"] = RouterSettings.from_json(read["router"])
        if read.get("target_modules") is not None:
            read["target_modules"] = tuple(read["target_modules"])
        try:
            return cls(**read)
        except TypeError as error:
            raise ComposerError(f"MixLoRA settings cannot be used: {error}.") from None
