"""What is always added to a layer, below any mixture: no gate weighs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.mixture.guards import check_factors, check_host, find_site
from composer.mixture.replacement import Attached, replace
from composer.mixture.sites import LowRankLike
from composer.mixture.stand_in import StandIn

Weighed = tuple[str, float, Mapping[str, LowRankLike]]
"""An expert's name, its weight in a part of the models, and its factors by site."""


class Always(StandIn):
    """A Linear or Conv2d and what is added to it: y = W x + sum_i w_i B_i (A_i x + o_i).

    down: (ranks, in[, kh, kw]), the weights multiplied in; up: (out, ranks[, 1, 1]); offset:
    (ranks,).
    """

    down: Tensor
    up: Tensor
    offset: Tensor

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        inner: nn.Linear | nn.Conv2d,
        factors: Sequence[tuple[float, LowRankLike]],
    ) -> None:
        """base: what stands there now; inner: the layer itself."""
        super().__init__(base)
        self.layer = (inner,)  # not a child: it is the base's, or the base itself
        weight = inner.weight
        outputs, inputs, *kernel = weight.shape
        downs: list[Tensor] = []
        ups: list[Tensor] = []
        offsets: list[Tensor] = []
        for number, its in factors:
            rank, scale = its.down.shape[0], its.scale * number
            down = its.down.detach().reshape(rank, inputs, *kernel)
            offset = torch.zeros(rank) if its.offset is None else its.offset.detach()
            downs.append((down.float() * scale).to(weight))
            offsets.append((offset.float() * scale).to(weight))
            ups.append(its.up.detach().reshape(outputs, rank, *(1 for _ in kernel)).to(weight))
        self.register_buffer("down", torch.cat(downs), persistent=False)
        self.register_buffer("up", torch.cat(ups, dim=1), persistent=False)
        self.register_buffer("offset", torch.cat(offsets), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Shaped as of the base."""
        output = cast(Tensor, self.base(hidden))
        layer = self.layer[0]
        if isinstance(layer, nn.Conv2d):
            # the layer's own stride, padding (and its mode) and dilation
            low = layer._conv_forward(hidden, self.down, self.offset)  # pyright: ignore[reportPrivateUsage]
            return output + functional.conv2d(low, self.up)
        return output + functional.linear(
            functional.linear(hidden, self.down, self.offset), self.up
        )


def attach_always(models: Mapping[str, nn.Module], experts: Sequence[Weighed]) -> Attached:
    """Add experts to models with constant weights; mixtures are attached above them.

    models: by part. Weights are for all sites that are given with them.

    Raises:
        ComposerError: a model, an expert or a site cannot be used; the models are as before.
    """
    for part, model in models.items():
        check_host(part, model)
    found: dict[str, list[tuple[float, LowRankLike]]] = {}
    for name, weight, sites in experts:
        for site, factors in sites.items():
            check_factors(name, site, factors, find_site(site, models))
            found.setdefault(site, []).append((weight, factors))
    stand_ins: dict[nn.Module, nn.Module] = {}
    for site, factors in found.items():
        part, _, path = site.partition(".")
        base = cast("nn.Linear | nn.Conv2d", models[part].get_submodule(path))
        stand_ins[base] = Always(base, find_site(site, models), factors)
    return Attached(replace(models, stand_ins))
