"""What a MixLoRA adapter is: settings that are checked, and the reference's `adapter_config.json`.

The fields of that file are the reference's (MoE-PEFT and the package `mixlora`): the LoRA of the
attention at its top, the experts' under `expert_lora` where it differs. One field is ours alone,
`router_remainder`, and left out where it says what the reference does. Training settings, which the
reference does not write, are written under the names by which it reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from composer.errors import ComposerError
from composer.mixture.lora_settings import LoraSettings
from composer.mixture.routers import RouterSettings


@dataclass(frozen=True, kw_only=True)
class MixLoraConfig:
    """One MixLoRA adapter; the defaults are the paper's (table 3).

    experts: the LoRA of each expert of an FFN.
    attention: the LoRA of the attention's projections; None for none.
    router: how many experts there are and how they are picked.
    target_modules: the names of the Linear modules to adapt, in FFNs and attention alike
        ("q_proj", "gate_proj", ...); None for all that are known.
    base_model: the folder or hub name of the model it is for.
    act_fn: the name of the FFN's activation as the reference's files give it; None for the model's
        own. Another than the model's own is refused.
    """

    experts: LoraSettings = field(default_factory=LoraSettings)
    attention: LoraSettings | None = field(default_factory=LoraSettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    target_modules: tuple[str, ...] | None = None
    base_model: str = ""
    task_type: str = "CAUSAL_LM"
    act_fn: str | None = None

    def to_reference(self) -> dict[str, Any]:
        """The fields of the reference's `adapter_config.json`."""
        raise NotImplementedError

    @classmethod
    def from_reference(cls, fields: Mapping[str, Any], path: Path) -> MixLoraConfig:
        """What such a file says; legacy files (routing strategy "mixtral") are read too.

        path: what messages call it.

        Raises:
            ComposerError: it is no MixLoRA adapter, or a field cannot be used.
        """
        raise ComposerError(f"{path}: not yet")
