"""MixLoRA adapters attached to a model: sparse experts in its FFNs, plain LoRA on its attention.

    settings = MixLoraSettings()
    mixlora = attach_mixlora(model, {"code": settings, "law": settings})
    mixlora.assign(["code", "law", "law"])          # whose each row of the batch is
    with mixlora.record_routing(attention_mask) as tape:    # only where the router loss is wanted
        output = model(input_ids=..., attention_mask=..., labels=...)
    loss = output.loss + sum(mixlora.router_loss(tape, name) for name in mixlora.names)
    loss.backward()
    mixlora.detach()

Any model of transformers (or diffusers) whose FFNs have a known structure will do; its caching,
generation, gradient checkpointing (the non-reentrant form, their default) and padding are its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.mixlora.adapter import AdapterSite
from composer.mixlora.experts import FfnExperts
from composer.mixlora.factors import ConvFactors, Factors
from composer.mixlora.ffn import FfnForm
from composer.mixlora.host import FfnHost
from composer.mixlora.router_losses import Over, balance_loss, loads, z_loss
from composer.mixlora.rows import Masks, Rows, Tape
from composer.mixlora.settings import MixLoraSettings
from composer.mixlora.targets import Targets, find_hosts, find_targets
from composer.mixlora.tensors import copy_tensors, named_tensors
from composer.mixture.replacement import Attached, Replacement, replace


def attach_mixlora(
    model: nn.Module, adapters: Mapping[str, MixLoraSettings], *, seed: int | None = None
) -> MixLora:
    """Attach fresh adapters, one or several at once. Everything is checked and built before any
    module is replaced, and all parameters of the model are frozen while they are attached.

    A fresh adapter changes nothing: B is 0 (A kaiming-uniform, routers N(0, init_std)). Only the
    dynamic and the switch router without `remainder` make the FFN's output smaller.

    model: a PreTrainedModel, for instance LlamaForCausalLM.
    adapters: by name; their ranks, experts and routers may differ.
    seed: of the first weights; None to draw from the global generator.

    Raises:
        ComposerError: a model without a known FFN or with PEFT layers on it, target modules that
            are not there, another activation. The model is as before.
    """
    model = cast(nn.Module, getattr(model, "_orig_mod", model))
    if not adapters:
        raise ComposerError("No adapter is given to attach: give at least one.")
    for name in adapters:
        if not re.fullmatch(r"[\w-]+", name):
            raise ComposerError(
                f"{name[:40]!r} cannot name an adapter: use letters, digits, _ and -."
            )
    forms = find_hosts(model)
    targets = {name: find_targets(model, forms, name, adapters[name]) for name in adapters}
    rows = Rows(tuple(adapters))
    with torch.random.fork_rng(devices=[], enabled=seed is not None):  # pyright: ignore[reportUnknownMemberType]
        if seed is not None:
            torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        hosts, sites = _build(model, forms, targets, rows)
    stand_ins = {host.base: host for host in (*hosts.values(), *sites.values())}
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    done = replace({"model": model}, cast(Mapping[nn.Module, nn.Module], stand_ins))
    for parameter in frozen:
        parameter.requires_grad_(False)
    return MixLora(
        model, {n: t.config for n, t in targets.items()}, rows, hosts, sites, done, frozen
    )


def _build(
    model: nn.Module,
    forms: Mapping[str, FfnForm],
    targets: Mapping[str, Targets],
    rows: Rows,
) -> tuple[dict[str, FfnHost], dict[str, AdapterSite]]:
    hosts: dict[str, FfnHost] = {}
    sites: dict[str, AdapterSite] = {}
    for name, target in targets.items():
        for path, adapted in target.ffns.items():
            base = model.get_submodule(path)
            host = hosts.setdefault(path, FfnHost(base, forms[path], path, rows))
            host.adapters[name] = FfnExperts(
                forms[path],
                base,
                router=target.config.router,
                lora=target.config.experts,
                adapted=adapted,
            ).train(base.training)
        for path in target.attention:
            linear = cast(nn.Linear, model.get_submodule(path))
            site = sites.setdefault(path, AdapterSite(linear, rows))
            assert target.config.attention is not None  # else it has no such targets
            factors = Factors(target.config.attention, linear)
            site.adapters[name] = factors.train(linear.training)
        for path in target.convolutions:
            conv = cast(nn.Conv2d, model.get_submodule(path))
            site = sites.setdefault(path, AdapterSite(conv, rows))
            assert target.config.convolutions is not None  # else it has no such targets
            site.adapters[name] = ConvFactors(target.config.convolutions, conv).train(conv.training)
    return hosts, sites


class MixLora(Attached):
    """The handle on MixLoRA adapters that are attached to one model.

    With one adapter all rows are its own; with several, `assign` says whose each row is before the
    model runs. Base layers run once for the whole batch, routers and experts on their own rows.

    model: the model they are attached to.
    configs: by adapter, with their target_modules filled in.
    hosts, sites: the stand-ins for FFNs, and for the attention's projections and convolutions that
        have plain LoRA, by path.
    """

    def __init__(
        self,
        model: nn.Module,
        configs: Mapping[str, MixLoraSettings],
        rows: Rows,
        hosts: Mapping[str, FfnHost],
        sites: Mapping[str, AdapterSite],
        replacements: list[Replacement],
        frozen: list[nn.Parameter],
    ) -> None:
        super().__init__(replacements)
        self.model, self.configs = model, configs
        self.hosts, self.sites = hosts, sites
        self._rows, self._frozen = rows, frozen

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters."""
        return tuple(self.configs)

    def assign(self, rows: Sequence[str | None] | str | None) -> None:
        """Say whose each row of the next batches is; see `Rows.assign`."""
        self._rows.assign(rows)

    def record_routing(self, masks: Masks | None = None) -> AbstractContextManager[Tape]:
        """Collect what the routers decide, as `Rows.record_routing`.

        masks: the batch's attention mask (batch, tokens), nonzero for tokens that count. For an
        encoder-decoder {"encoder": ..., "decoder": ...}, the starts of their FFNs' paths.
        """
        return self._rows.record_routing(masks)

    def router_loss(self, tape: Tape, name: str, *, over: Over = "all") -> Tensor:
        """Balance loss (and z-loss for a switch router) of one adapter, times its coefficients.

        A float32 scalar to add to that adapter's loss; 0 where the adapter had no row.
        """
        router = self._config(name).router
        mine = [routed for routed in tape if routed.adapter == name]
        loss = router.balance * balance_loss(mine, over=over)
        if router.strategy == "mixlora-switch":
            loss = loss + router.z_loss * z_loss(mine)
        return loss

    def loads(self, tape: Tape, name: str) -> dict[str, Tensor]:
        """By FFN path the part of the choices that each expert got, (experts,), summing to 1."""
        self._config(name)
        return loads(routed for routed in tape if routed.adapter == name)

    def named_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """All that is trained of one adapter, by path: routers, factors, DoRA's magnitudes."""
        self._config(name)
        for path, stand_in in (*self.hosts.items(), *self.sites.items()):
            if name in stand_in.adapters:
                for end, parameter in stand_in.adapters[name].named_parameters():
                    yield f"{path}.{end}", parameter

    def parameter_groups(
        self, name: str, *, lr: float, weight_decay: float = 0.01, lora_plus: float = 1.0
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer, each with "params", "lr", "weight_decay" and "name".

        lora_plus: how many times as fast B learns as the rest (LoRA+, Hayou et al. 2024).

        Groups are called "A", "B", "router" and "magnitude"; empty ones are left out.
        """
        if not lora_plus > 0.0:
            raise ComposerError(f"LoRA+'s ratio is {lora_plus}: give a number above 0.")
        groups: dict[str, list[nn.Parameter]] = {"A": [], "B": [], "router": [], "magnitude": []}
        for path, parameter in self.named_parameters(name):
            last = path.rpartition(".")[2]
            groups[last if last in groups else "router"].append(parameter)
        return [
            {
                "params": parameters,
                "lr": lr * (lora_plus if group == "B" else 1.0),
                "weight_decay": weight_decay,
                "name": group,
            }
            for group, parameters in groups.items()
            if parameters
        ]

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """One adapter's tensors, by the reference's names, on the CPU: what a checkpoint holds."""
        self._config(name)
        named = named_tensors(name, self.hosts, self.sites)
        return {key: part.detach().to("cpu", copy=True) for key, part in named.items()}

    def load_state_dict(self, name: str, tensors: Mapping[str, Tensor], source: str = "") -> None:
        """Take over tensors by the reference's names.

        source: what messages call them, a file's path.

        Raises:
            ComposerError: some are missing, left over, misshapen or not finite. Nothing is changed.
        """
        self._config(name)
        named = named_tensors(name, self.hosts, self.sites)
        copy_tensors(named, tensors, source or f'The tensors of adapter "{name}"', self.model)

    def detach(self) -> None:
        """Put the original modules back, and let those parameters be trained that could be before.
        Again is harmless."""
        super().detach()
        while self._frozen:
            self._frozen.pop().requires_grad_(True)

    def _config(self, name: str) -> MixLoraSettings:
        if name not in self.configs:
            known = ", ".join(f'"{known}"' for known in self.configs)
            raise ComposerError(
                f'No adapter "{name}" is attached to this model; it has {known}. Use one of these.'
            )
        return self.configs[name]
