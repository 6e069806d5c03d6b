"""What a MixLoRA adapter is: settings that are checked, and the reference's `adapter_config.json`.

The fields of that file are the reference's (MoE-PEFT and the package `mixlora`): the LoRA of the
attention at its top, the experts' under `expert_lora` where it differs. One field is ours alone,
`router_remainder`, and left out where it says what the reference does. Training settings, which the
reference does not write, are written under the names by which it reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from composer.errors import ComposerError
from composer.mixlora.ffn import FORMS, FfnForm
from composer.mixlora.router import STRATEGIES, RouterSettings
from composer.mixlora.settings import LoraSettings, MixLoraSettings
from composer.outside import parse_json

LEGACY = {"w1_proj": "gate_proj", "w2_proj": "down_proj", "w3_proj": "up_proj"}
"""How the first files name the Linear modules of an FFN (routing strategy "mixtral")."""

_FFN_NAMES = {path for form in FORMS for path in form.linears}


@dataclass(frozen=True, kw_only=True)
class MixLoraConfig(MixLoraSettings):
    """One MixLoRA adapter of a language model, as its files describe it.

    base_model: the folder or hub name of the model it is for.
    act_fn: the name of the FFN's activation as the reference's files give it; None for the model's
        own. Another than the model's own is refused when it is attached.
    """

    base_model: str = ""
    task_type: str = "CAUSAL_LM"
    act_fn: str | None = None

    def check_ffn(self, name: str, path: str, form: FfnForm, ffn: nn.Module) -> None:
        """Refuse an FFN with another activation than `act_fn`."""
        given = self.act_fn
        if given is None:
            return
        if given not in ACT2FN:
            raise ComposerError(
                f'Adapter "{name}": its act_fn is {given[:40]!r}, which transformers does not know.'
                " Leave it out to use the model's own."
            )
        sample = torch.linspace(-4.0, 4.0, 33)
        asked = cast(Tensor, ACT2FN[given](sample))
        if not torch.allclose(form.activate(ffn, sample), asked, atol=5e-3):
            raise ComposerError(
                f'Adapter "{name}": its act_fn is {given!r}, and {path} uses another activation. '
                "The adapter is for another base: choose that model."
            )

    def to_reference(self) -> dict[str, Any]:
        """The fields of the reference's `adapter_config.json`."""
        router, top = self.router, self.attention or self.experts
        fields: dict[str, Any] = {
            "bias": "none",
            "peft_type": "MIXLORA",
            "task_type": self.task_type,
            "base_model_name_or_path": self.base_model,
            **_lora_fields(top),
            "target_modules": list(self.target_modules or ()),
            "routing_strategy": router.strategy,
            "num_experts": router.experts,
            "router_aux_loss_coef": router.balance,
            "router_init_range": router.std,
            "jitter_noise": router.jitter,
        }
        if self.experts != top:
            fields["expert_lora"] = {"bias": "none", **_lora_fields(self.experts)}
        if self.act_fn is not None:
            fields["act_fn"] = self.act_fn
        if router.strategy == "mixlora":
            fields["top_k"] = router.top_k
        elif router.strategy == "mixlora-dynamic":
            fields |= {"top_p": router.top_p, "temperature": router.temperature}
        else:
            # a capacity that no sequence reaches, where there is to be none
            fields |= {
                "expert_capacity": router.capacity or _NO_CAPACITY,
                "sparse_step": None,
                "router_z_loss_coef": router.z_loss,
            }
        if router.remainder:
            fields["router_remainder"] = True
        return fields

    @classmethod
    def from_reference(cls, fields: Mapping[str, Any], path: Path) -> MixLoraConfig:
        """What such a file says; legacy files (routing strategy "mixtral") are read too.

        path: what messages call it.

        Raises:
            ComposerError: it is no MixLoRA adapter, or a field cannot be used.
        """
        try:
            return _read(fields)
        except ComposerError as error:
            raise ComposerError(f"{path}: {error}") from None


_NO_CAPACITY = 2**31 - 1


def parse_config(text: bytes, path: Path) -> MixLoraConfig:
    """The settings in an `adapter_config.json`.

    Raises:
        ComposerError: it is not JSON, or `MixLoraConfig.from_reference` refuses it.
    """
    try:
        fields = parse_json(text.decode("utf-8"))
    except ValueError as error:
        raise ComposerError(
            f"{path}: is not valid JSON ({error}). Download the adapter again."
        ) from None
    if not isinstance(fields, dict):
        raise ComposerError(f"{path}: is not a table of settings. Download the adapter again.")
    return MixLoraConfig.from_reference(cast("dict[str, Any]", fields), path)


def _lora_fields(lora: LoraSettings) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "r": lora.rank,
        # the reference reads whole numbers alone
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "lora_dropout": float(lora.dropout),
    }
    if lora.dora:
        fields["use_dora"] = True
    if lora.rslora:
        fields["use_rslora"] = True
    return fields


def _read(fields: Mapping[str, Any]) -> MixLoraConfig:
    kind = fields.get("peft_type")
    if kind != "MIXLORA":
        raise ComposerError(
            f"its peft_type is {str(kind)[:40]!r} and not 'MIXLORA': it is another kind of "
            "adapter. Choose a MixLoRA adapter."
        )
    strategy = str(fields.get("routing_strategy"))
    legacy = strategy == "mixtral"
    strategy = "mixlora" if legacy else strategy
    if strategy not in STRATEGIES:
        raise ComposerError(
            f"its routing_strategy is {strategy[:40]!r}, and only {', '.join(STRATEGIES)} are "
            "known. Choose another adapter, or update Composer."
        )
    top = _read_lora(fields, LoraSettings())
    special = fields.get("expert_lora")
    if special is not None and not isinstance(special, dict):
        raise ComposerError("its expert_lora is not a table. Download the adapter again.")
    experts = top if special is None else _read_lora(cast("dict[str, Any]", special), top)
    targets = _read_targets(fields.get("target_modules"))
    attention = top if any(target not in _FFN_NAMES for target in targets) else None
    switch = strategy == "mixlora-switch"
    capacity = _whole(fields, "expert_capacity", 32)
    router = RouterSettings(
        strategy=cast(Any, strategy),
        experts=_whole(fields, "num_experts", None),
        top_k=_whole(fields, "top_k", 2) if strategy == "mixlora" else 1,
        top_p=_number(fields, "top_p", 0.8),
        temperature=_number(fields, "temperature", 0.0),
        capacity=None if capacity == _NO_CAPACITY else capacity,
        remainder=_flag(fields, "router_remainder"),
        jitter=_number(fields, "jitter_noise", 0.01 if switch else 0.0),
        init_std=_number(fields, "router_init_range", 1.0 if switch else 0.02),
        balance=_number(fields, "router_aux_loss_coef", 1e-3),
        z_loss=_number(fields, "router_z_loss_coef", 1e-3),
    )
    act = fields.get("act_fn")
    return MixLoraConfig(
        experts=experts,
        attention=attention,
        router=router,
        target_modules=targets,
        base_model=str(fields.get("base_model_name_or_path") or ""),
        task_type=str(fields.get("task_type") or "CAUSAL_LM"),
        act_fn=None if act is None else str(act),
    )


def _read_lora(fields: Mapping[str, Any], default: LoraSettings) -> LoraSettings:
    return replace(
        default,
        rank=_whole(fields, "r", default.rank),
        alpha=_number(fields, "lora_alpha", default.alpha),
        dropout=_number(fields, "lora_dropout", default.dropout),
        rslora=_flag(fields, "use_rslora", default.rslora),
        dora=_flag(fields, "use_dora", default.dora),
    )


def _read_targets(given: object) -> tuple[str, ...]:
    if isinstance(given, dict):
        given = [name for name, on in cast("dict[object, object]", given).items() if on is True]
    names = cast("list[object]", given) if isinstance(given, list) else []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ComposerError(
            "its target_modules name no module: give the names of the Linear modules it adapts, "
            'such as ["q_proj", "gate_proj", "up_proj", "down_proj"].'
        )
    return tuple(dict.fromkeys(LEGACY.get(str(name), str(name)) for name in names))


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ComposerError(f"its {name} is {str(value)[:40]!r}: give a number.")
    return float(value)


def _whole(fields: Mapping[str, Any], name: str, default: int | None) -> int:
    value = fields.get(name, default)
    if type(value) is not int:
        raise ComposerError(f"its {name} is {str(value)[:40]!r}: give a whole number.")
    return value


def _flag(fields: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise ComposerError(f"its {name} is {str(value)[:40]!r}: give true or false.")
    return value
