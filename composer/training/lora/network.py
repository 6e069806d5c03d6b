"""The trainable layers of a LoRA: put into a model by peft, read out as factors, taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.experts.low_rank import LowRank
from composer.mixlora import Tape

ADAPTER = "lora"


class LoraNetwork:
    """Low-rank layers on the targets of some models, in float32, the only trainable parameters.

    The up factors start at zero, so nothing changes before the first step. `detach` puts the very
    same original modules back.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        targets: Mapping[str, Sequence[str]],
        *,
        rank: int,
        alpha: float,
        seed: int,
        rates: Mapping[str, float],
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self._models, self._rates = dict(models), dict(rates)
        self._trainable_before = {
            name: parameter.requires_grad for name, parameter in self._named_parameters()
        }
        # peft draws its factors from the global random state: lend it a copy.
        with cast(Any, torch.random).fork_rng(devices=[]):
            cast(Any, torch).manual_seed(seed)
            for part, names in targets.items():
                config = LoraConfig(
                    r=rank,
                    lora_alpha=cast(int, alpha),  # a fraction works too
                    target_modules=list(names),
                    init_lora_weights=True,
                )
                inject_adapter_in_model(config, self._models[part], ADAPTER)
        for part, model in self._models.items():
            if part not in targets:
                model.requires_grad_(False)
        self._layers = {
            f"{part}.{path}": cast(Any, module)
            for part in targets
            for path, module in _modules(self._models[part])
            if hasattr(module, "base_layer")
        }

    def parameters(self, part: str = "") -> dict[str, nn.Parameter]:
        """The trainable parameters by name, of one model or of all."""
        return {
            f"{site}.{kind}": factor
            for site, layer in self._layers.items()
            if site.startswith(part)
            for kind, factor in (
                ("down", cast(nn.Parameter, layer.lora_A[ADAPTER].weight)),
                ("up", cast(nn.Parameter, layer.lora_B[ADAPTER].weight)),
            )
        }

    def groups(self) -> list[dict[str, Any]]:
        """One for each model, empty where it is not trained."""
        return [
            {"params": list(self.parameters(f"{part}.").values()), "lr": rate}
            for part, rate in self._rates.items()
        ]

    def record_routing(self) -> AbstractContextManager[Tape]:
        """There are no routers: an empty tape."""
        return nullcontext(Tape())

    def router_loss(self, tape: Tape) -> Tensor:
        """There are no routers to balance: 0."""
        return torch.zeros(())

    def state(self) -> dict[str, Tensor]:
        """Nothing but its parameters."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """There is nothing."""

    def factors(self) -> dict[str, LowRank]:
        """What was learned: site -> a copy of its factors, on the CPU."""
        return {
            site: LowRank(
                down=layer.lora_A[ADAPTER].weight.detach().cpu().clone(),
                up=layer.lora_B[ADAPTER].weight.detach().cpu().clone(),
                scale=float(layer.scaling[ADAPTER]),
            )
            for site, layer in self._layers.items()
        }

    def detach(self) -> None:
        for site, layer in self._layers.items():
            part, _, path = site.partition(".")
            parent, _, name = path.rpartition(".")
            setattr(self._models[part].get_submodule(parent), name, layer.base_layer)
        self._layers.clear()
        for model in self._models.values():
            if "peft_config" in vars(model):
                del model.peft_config
        for name, parameter in self._named_parameters():
            parameter.requires_grad_(self._trainable_before[name])

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (f"{part}.{name}", parameter)
            for part, model in self._models.items()
            for name, parameter in model.named_parameters()
        ]


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(cast(Any, model).named_modules())


def check_targets(model: nn.Module, part: str, targets: Sequence[str]) -> None:
    """Raises ComposerError unless each target ends the name of some Linear or Conv2d."""
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ComposerError(
            f"The {part} already has LoRA layers of peft on it: unload them before training."
        )
    modules = {name: module for name, module in _modules(model) if not list(module.children())}
    for target in targets:
        hits = [
            module
            for name, module in modules.items()
            if name == target or name.endswith(f".{target}")
        ]
        if not any(isinstance(module, nn.Linear | nn.Conv2d) for module in hits):
            last = sorted(
                {
                    name.rpartition(".")[2]
                    for name, module in modules.items()
                    if isinstance(module, nn.Linear | nn.Conv2d)
                    and not name.rpartition(".")[2].isdigit()
                }
            )
            raise ComposerError(
                f"The {part} has no layer named {target!r}: choose targets among {', '.join(last)}."
            )
