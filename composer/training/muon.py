"""Muon: the momentum of a weight matrix, replaced by its nearest semi-orthogonal matrix.

Muon (Keller Jordan, 2024) steps by (M Mᵀ)^(-1/2) M. torch's own Muon takes two-dimensional weights
alone; a U-Net is mostly convolutions, which are taken here as matrices (out, in · kh · kw).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """(M Mᵀ)^(-1/2) M for a batch of matrices (batch, m, n), by a coupled Newton iteration.

    The iteration runs on the small Gram matrix (m, m), so it costs two products with M in all,
    where the usual Newton-Schulz costs two for every iteration.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix  # (batch, m, n), m <= n
    gram = x @ x.mT
    size = gram.shape[-1]
    identity = torch.eye(size, dtype=x.dtype, device=x.device)
    norm: Tensor = cast(Any, gram.flatten(1)).norm(dim=1)[:, None, None] + 1e-20
    # a little of the identity keeps null directions from being blown up
    y = gram / norm + 1e-5 * identity
    z = identity.expand_as(y)
    for _ in range(iterations):
        t = 1.5 * identity - 0.5 * (z @ y)
        y, z = y @ t, t @ z
    x = (z / norm.sqrt()) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon over matrices and the kernels of convolutions; `lr` is the spectral norm of one update.

    `params` are parameters or groups of them, as torch's optimizers take them. In a group with
    `stacked` the first axis counts matrices, of which each is taken for itself.

    Under torch.distributed each process orthogonalises its share of the weights and the updates
    are exchanged, so the cost is split.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        decay: float = 0,
    ) -> None:
        super().__init__(cast(Any, list(params)), {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        world = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        for group in self.param_groups:
            weights = cast(list[nn.Parameter], group["params"])
            updates = [torch.zeros_like(w) for w in weights] if world > 1 else None
            shapes: dict[tuple[int, int], list[int]] = {}
            for index, weight in enumerate(weights):
                if weight.grad is not None:
                    matrix = weight[0] if group.get("stacked") else weight
                    shapes.setdefault((matrix.shape[0], matrix[0].numel()), []).append(index)
            for number, ((rows, columns), members) in enumerate(sorted(shapes.items())):
                for place, index in enumerate(members):
                    state = self.state[weights[index]]
                    if not state:
                        state["momentum"] = torch.zeros_like(weights[index])
                    grad = cast(Tensor, weights[index].grad)
                    state["momentum"].lerp_(grad, 1 - group["momentum"])
                    state["look"] = torch.lerp(grad, state["momentum"], group["momentum"])
                    state["mine"] = (place + number) % world == rank
                mine = [i for i in members if self.state[weights[i]]["mine"]]
                if mine:
                    looks = [
                        self.state[weights[i]]["look"].reshape(-1, rows, columns) for i in mine
                    ]
                    # one rate for all shapes: the change of the outputs' RMS is what counts
                    scale = math.sqrt(max(1.0, rows / columns))
                    sizes = [len(look) for look in looks]
                    done = torch.split(orthogonalise(torch.cat(looks)), sizes)
                    for i, update in zip(mine, done, strict=True):
                        if updates is None:
                            self._apply(weights[i], update.reshape_as(weights[i]), scale, group)
                        else:
                            updates[i] = update.reshape_as(weights[i]).contiguous() * scale
                for i in members:
                    del self.state[weights[i]]["look"], self.state[weights[i]]["mine"]
            if updates is not None:
                flat = torch.cat([u.reshape(-1) for u in updates])
                cast(Any, dist).all_reduce(flat)
                parts = torch.split(flat, [w.numel() for w in weights])
                for weight, part in zip(weights, parts, strict=True):
                    if weight.grad is not None:  # others are left as they are, as by one process
                        self._apply(weight, part.view(weight.shape), 1.0, group)

    @staticmethod
    def _apply(weight: Tensor, update: Tensor, scale: float, group: dict[str, Any]) -> None:
        weight.mul_(1 - group["lr"] * group["decay"])
        weight.add_(update, alpha=-group["lr"] * scale)
