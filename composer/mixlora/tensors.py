"""The tensors of an attached adapter under the names of its file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.mixlora.adapter import AdapterSite
from composer.mixlora.factors import ConvFactors, Factors
from composer.mixlora.host import FfnHost
from composer.mixlora.names import FACTORS, PREFIX, ROUTER, short_paths


def named_tensors(
    name: str, hosts: Mapping[str, FfnHost], sites: Mapping[str, AdapterSite]
) -> dict[str, Tensor]:
    """By its name in a file each tensor of one adapter: views into the stacked parameters."""
    short = short_paths([*hosts, *sites])
    found: dict[str, Tensor] = {}
    for path, host in hosts.items():
        experts = host.experts(name)
        if experts is None:
            continue
        stem = f"{PREFIX}{short[path]}"
        found[f"{stem}.{ROUTER}"] = experts.router.weight
        for linear in host.form.linears:
            factors = experts.at(linear)
            if factors is not None:
                for expert in range(experts.router.settings.experts):
                    _add(found, f"{stem}.{linear}.experts.{expert}", factors, expert)
    for path, site in sites.items():
        if name in site.adapters:
            _add(found, f"{PREFIX}{short[path]}", site.factors(name), 0)
    return found


def _add(found: dict[str, Tensor], stem: str, factors: Factors | ConvFactors, expert: int) -> None:
    for key, end in FACTORS.items():
        parameter = cast("nn.Parameter | None", getattr(factors, key))
        if parameter is not None:
            found[f"{stem}.{end}"] = parameter[expert]


@torch.no_grad()
def copy_tensors(
    places: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str, model: nn.Module
) -> None:
    """Copy tensors into an adapter's places once all are known to fit.

    Raises:
        ComposerError: some are missing, left over, misshapen or not finite. Nothing is changed.
    """
    kind = type(model).__name__
    another = f"It was made for another base than this {kind}, or with other settings"
    for name, place in places.items():
        if name not in tensors:
            raise ComposerError(f"{source}: {name} is missing. {another}: choose its own model.")
        if tensors[name].shape != place.shape:
            raise ComposerError(
                f"{source}: {name} has the shape {tuple(tensors[name].shape)}, and here "
                f"{tuple(place.shape)} is needed. {another}: choose its own model."
            )
        if not torch.isfinite(tensors[name].float()).all():
            raise ComposerError(
                f"{source}: {name} holds NaN or infinite numbers: its training went wrong. Choose "
                "an earlier checkpoint."
            )
    if left := sorted(tensors.keys() - places.keys()):
        raise ComposerError(
            f"{source}: has {len(left)} tensors that have no place in this model, such as "
            f"{left[0]}. {another}: choose its own model."
        )
    for name, place in places.items():
        place.copy_(tensors[name])
