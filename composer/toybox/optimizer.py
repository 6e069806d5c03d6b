"""The optimizer of the toybox's recipe: Muon for matrices, AdamW for the rest.

Muon (Keller Jordan, 2024) replaces the momentum M of a weight matrix by its nearest
semi-orthogonal matrix, (M Mᵀ)^(-1/2) M. torch's own Muon takes two-dimensional weights alone; a
U-Net is mostly convolutions, which are taken here as matrices (out, in · kh · kw).
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
    """Muon over weights of two or four dimensions; `lr` is the spectral norm of one update.

    Under torch.distributed each process orthogonalises its share of the weights and the updates
    are exchanged, so the cost is split.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, decay: float = 0
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "decay": decay})

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
                    shapes.setdefault((weight.shape[0], weight[0].numel()), []).append(index)
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
                    looks = [self.state[weights[i]]["look"].reshape(rows, columns) for i in mine]
                    # one rate for all shapes: the change of the outputs' RMS is what counts
                    scale = math.sqrt(max(1.0, rows / columns))
                    for i, update in zip(mine, orthogonalise(torch.stack(looks)), strict=True):
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
                    self._apply(weight, part.view(weight.shape), 1.0, group)

    @staticmethod
    def _apply(weight: Tensor, update: Tensor, scale: float, group: dict[str, Any]) -> None:
        weight.mul_(1 - group["lr"] * group["decay"])
        weight.add_(update, alpha=-group["lr"] * scale)


class MuonAdamW:
    """Muon for a model's hidden matrices and AdamW for all else, stepped as one.

    Embeddings, the first and last convolution, norms, biases and throw-away heads go to AdamW.
    """

    def __init__(self, model: nn.Module, *, muon_lr: float, adam_lr: float) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            outer = any(part in name for part in ("conv_in", "conv_out", "embedding", "heads"))
            hidden = parameter.ndim in (2, 4) and min(parameter.shape[:2]) >= 8 and not outer
            (matrices if hidden else others).append(parameter)
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=muon_lr),
            torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0),
        ]
        self._base = [muon_lr, adam_lr]
        self.parameters = [*matrices, *others]

    def step(self, factor: float) -> None:
        """One update with both learning rates times `factor`; gradients are then cleared."""
        for part, base in zip(self.parts, self._base, strict=True):
            for group in part.param_groups:
                group["lr"] = base * factor
            part.step()
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, to be saved as safetensors."""
        found: dict[str, Tensor] = {}
        for number, part in enumerate(self.parts):
            for index, state in part.state_dict()["state"].items():
                for key, value in state.items():
                    found[f"{number}.{index}.{key}"] = value
        return found

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        for number, part in enumerate(self.parts):
            whole = part.state_dict()
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                owner, index, key = name.split(".")
                if int(owner) == number:
                    state.setdefault(int(index), {})[key] = value
            part.load_state_dict(whole | {"state": state})
