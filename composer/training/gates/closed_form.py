"""An instant start: for each unit, the weights that a least-squares solution gives.

On expert i's own prompts the gate is to say what expert i says alone. With constant weights g that
asks, over the unit's sites and the inputs X_i that expert i alone gives them,

    minimise  sum_i || sum_j g_j D_j(X_i) - D_i(X_i) ||^2

which has the normal equations G g = h, G_jk = sum_i <D_j(X_i), D_k(X_i)>, h_j = sum_i <D_j(X_i),
D_i(X_i)> (RegMean, arXiv 2212.09849, for one number for each expert in place of whole matrices).
With D_j(x) = U_j A_j x the products need only the ranks: <D_j, D_k> sums (U^T U) * (low^T low)
over the block of ranks (j, k), low = A x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.mixture import ExpertLinear, Mixture, Site

RIDGE = 1e-2


class Products:
    """Sums of <D_j(x), D_k(x)> at every site, (experts, experts), over all x seen so far."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        count = len(mixture.names)
        self.sums = {name: torch.zeros(count, count) for name in mixture.sites}

    @torch.no_grad()
    def watch(self, run: Callable[[], Any]) -> None:
        """Run the models once and add up what their sites see."""
        handles: list[Any] = []
        for name, site in self._mixture.sites.items():

            def hook(module: Any, inputs: tuple[Any, ...], name: str = name) -> None:
                low = low_of(module, inputs[0])
                self.sums[name] += products(module, low, low, len(self._mixture.names))

            handles.append(cast(Any, site).register_forward_pre_hook(hook))
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()


def low_of(site: Site, hidden: Tensor) -> Tensor:
    """A x of all experts, whatever their gate says: as the site's own `low` is shaped."""
    if isinstance(site, ExpertLinear):
        return functional.linear(hidden, site.down)
    conv = cast(nn.Conv2d, site.base)
    return conv._conv_forward(hidden, site.down, None)  # pyright: ignore[reportPrivateUsage]


def products(site: Site, low: Tensor, other: Tensor, count: int) -> Tensor:
    """<U_j low_j, U_k other_k>, (experts, experts), summed over batch and tokens; float32 on the
    CPU. low, other: what stands between the factors of a site, from the same inputs."""
    low, other = (_by_token(site, each) for each in (low, other))
    up = site.up.flatten(1).float()  # (out, ranks)
    both = (low.T @ other) * (up.T @ up)
    owners = functional.one_hot(site.owner, count).float()  # (ranks, experts)
    return (owners.T @ both @ owners).cpu()


def _by_token(site: Site, low: Tensor) -> Tensor:
    """(tokens of the batch, ranks)."""
    if isinstance(site, ExpertLinear):
        return low.flatten(0, -2).float()
    return low.transpose(0, 1).flatten(1).T.float()


def solve(
    mixture: Mixture, by_expert: Mapping[str, Products], *, ridge: float = RIDGE
) -> dict[str, list[float]]:
    """The weights of each unit; by_expert: what was seen while each expert spoke alone.

    `ridge` draws them to 1, and decides alone for an expert that is not in the unit.
    """
    weights: dict[str, list[float]] = {}
    count = len(mixture.names)
    for name, unit in mixture.units.items():
        left, right = torch.zeros(count, count), torch.zeros(count)
        for expert, products in by_expert.items():
            index = mixture.names.index(expert)
            total = torch.stack([products.sums[site] for site in unit.plan.sites]).sum(0)
            scale = total[index, index]
            if scale <= 0:  # it is not in this unit, and asks nothing of it
                continue
            # each expert's own prompts count alike, however strong it is
            left += total / scale
            right += total[:, index] / scale
        strength = ridge * left.diagonal().clamp_min(1e-6)
        found: Tensor = cast(Any, torch.linalg).solve(left + strength.diag(), right + strength)
        weights[name] = [float(number) for number in found]
    return weights
