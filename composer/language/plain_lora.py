"""An ordinary LoRA on a causal language model, by peft: what MixLoRA is measured against.

It has the same handle as MixLoRA's adapters, so that one trainer trains both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.files import write_atomically
from composer.language.parts import has_encoder
from composer.mixlora.rows import Masks, Tape
from composer.mixlora.settings import LoraSettings
from composer.settings import Settings


@dataclass(frozen=True, kw_only=True)
class PlainLoraConfig(Settings):
    """A LoRA on the named Linear modules; the paper's baseline has rank 80 and alpha 160.

    target_modules: as MixLoraConfig's; None for every Linear but the output layer.
    """

    noun: ClassVar[str] = "LoRA settings"

    lora: LoraSettings = field(default_factory=lambda: LoraSettings(rank=80, alpha=160.0))
    target_modules: tuple[str, ...] | None = None
    base_model: str = ""


class PlainLora:
    """The handle on one LoRA that peft attached to a model; see `MixLora` for what each does."""

    def __init__(self, model: nn.Module, name: str, config: PlainLoraConfig, seed: int) -> None:
        import peft

        self.names, self.model = (name,), model
        self.configs: Mapping[str, PlainLoraConfig] = {name: config}
        settings: Any = cast(Any, peft).LoraConfig(
            task_type="SEQ_2_SEQ_LM" if has_encoder(model) else "CAUSAL_LM",
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            use_rslora=config.lora.rslora,
            use_dora=config.lora.dora,
            target_modules=list(config.target_modules or ()) or "all-linear",
        )
        self._frozen = {n: p.requires_grad for n, p in model.named_parameters()}
        devices = [model.device] if cast(Any, model.device).type == "cuda" else []
        try:
            with cast(Any, torch.random).fork_rng(devices=devices):
                cast(Any, torch).manual_seed(seed)
                attached: Any = cast(Any, peft).get_peft_model(model, settings)
            self._peft: Any = attached
            # peft takes the name of the folder that the model came from
            attached.peft_config["default"].base_model_name_or_path = config.base_model
        except ValueError as error:
            wanted = ", ".join(config.target_modules or ("any Linear",))
            raise ComposerError(
                f"A LoRA cannot be attached to {wanted} of {type(model).__name__} ({error}): name"
                " modules that this model has."
            ) from error

    def assign(self, rows: Sequence[str | None] | str | None) -> None:
        """All rows are the one adapter's."""

    def record_routing(self, masks: Masks | None = None) -> AbstractContextManager[Tape]:
        """There are no routers: an empty tape."""
        return nullcontext(Tape())

    def router_loss(self, tape: Tape, name: str) -> Tensor:
        """There are no routers to balance: 0."""
        return torch.zeros(())

    def loads(self, tape: Tape, name: str) -> dict[str, Tensor]:
        """There are no experts: empty."""
        return {}

    def named_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The factors, by path."""
        for path, parameter in self._peft.named_parameters():
            if "lora_" in path:
                yield path, parameter

    def parameter_groups(
        self, name: str, *, lr: float, weight_decay: float = 0.01, lora_plus: float = 1.0
    ) -> list[dict[str, Any]]:
        """A, and B at `lora_plus` times its rate."""
        found = dict(self.named_parameters(name))
        fast = [p for path, p in found.items() if "lora_B" in path]
        slow = [p for path, p in found.items() if "lora_B" not in path]
        shared = {"weight_decay": weight_decay}
        return [
            {"params": slow, "lr": lr, "name": "A", **shared},
            {"params": fast, "lr": lr * lora_plus, "name": "B", **shared},
        ]

    def save(self, folder: Path, metadata: Mapping[str, str]) -> None:
        """Write peft's `adapter_config.json` and `adapter_model.safetensors`, each whole or not at
        all; both load with `PeftModel.from_pretrained`."""
        import peft
        from safetensors.torch import save

        tensors: dict[str, Tensor] = cast(Any, peft).get_peft_model_state_dict(self._peft)
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        settings = self._peft.peft_config["default"].to_dict() | {"inference_mode": True}
        config = {key: _plain(value) for key, value in settings.items()}
        folder.mkdir(parents=True, exist_ok=True)
        data = save(plain, {"format": "pt", **metadata})
        write_atomically(folder / "adapter_model.safetensors", data)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_atomically(folder / "adapter_config.json", text.encode())

    def detach(self) -> None:
        """Put the original modules back; again is harmless."""
        if self._peft is not None:
            self._peft.unload()
            self._peft = None
            if hasattr(self.model, "peft_config"):
                del self.model.peft_config
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(self._frozen[name])


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(cast("set[str]", value))
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in cast("dict[Any, Any]", value).items()}
    if value is None or isinstance(value, str | int | float | bool | list):
        return cast(Any, value)
    return str(getattr(value, "value", value))
