"""The constant weights that come nearest to what gates said, unit by unit.

A gate that speaks to each place is loud where its expert has something to do. The plain mean over
places would take most of an expert's weight if that is a small part of the picture, though the
expert hardly says anything elsewhere. So the weights w of a unit are those that change its sites'
outputs least, over all inputs x that they saw:

    minimise  sum_x || sum_j (g_j(x) - w_j) D_j(x) ||^2

which has the normal equations G w = h, G_jk = sum <D_j, D_k>, h_j = sum <D_j, sum_k g_k D_k>.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.mixture import ExpertLinear, Mixture, Site

RIDGE = 1e-3
"""How much the plain mean counts; it decides alone for an expert that is not in the unit."""


class Nearest:
    """Sums over what the sites of gated units see, step by step.

    steps: of one sampling.
    """

    def __init__(self, mixture: Mixture, steps: int) -> None:
        count = len(mixture.names)
        self._mixture = mixture
        self._left = {name: torch.zeros(steps, count, count) for name in mixture.gates}
        self._right = {name: torch.zeros(steps, count) for name in mixture.gates}

    @contextmanager
    def watching(self, step: int, pictures: int) -> Generator[None, None, None]:
        """Meanwhile the last `pictures` rows of what runs are added to this step's sums."""
        handles: list[Any] = []
        for unit in self._left:
            for name in self._mixture.units[unit].plan.sites:

                def hook(site: Any, inputs: tuple[Any, ...], unit: str = unit) -> None:
                    self._add(unit, step, site, inputs[0], pictures)

                site = cast(Any, self._mixture.sites[name])
                handles.append(site.register_forward_pre_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _add(self, unit: str, step: int, site: Any, hidden: Tensor, pictures: int) -> None:
        if site.routing.off:
            return
        count = len(self._mixture.names)
        gated, low = (each[-pictures:] for each in (site.low(hidden), low_of(site, hidden)))
        self._left[unit][step] += products(site, low, low, count)
        self._right[unit][step] += products(site, low, gated, count).sum(1)

    def weights(self, steps: range, means: Mapping[str, list[float]]) -> dict[str, list[float]]:
        """Each unit's weights over these steps, in the experts' order.

        means: what the gates said on average, to which `RIDGE` draws; a unit whose sites were not
            seen in these steps keeps it.
        """
        some = slice(steps.start, steps.stop)
        found: dict[str, list[float]] = {}
        for unit, said in means.items():
            mean = torch.tensor(said)
            left, right = self._left[unit][some].sum(0), self._right[unit][some].sum(0)
            strength = RIDGE * left.diagonal()
            # an expert that changes nothing here has no equation: any number solves it
            strength = torch.where(strength > 0, strength, torch.ones_like(strength))
            solved: Tensor = cast(Any, torch.linalg).solve(
                left + strength.diag(), right + strength * mean
            )
            found[unit] = [float(number) for number in solved]
        return found


def low_of(site: Site, hidden: Tensor) -> Tensor:
    """A x of all experts, whatever their gate gives: as the site's own `low` is shaped."""
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
