"""The losses of gate training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from composer.mixture.stand_in import Weights

_LEAST = 1e-8


def shares(weights: Tensor) -> Tensor:
    """Weights (batch, [tokens,] experts) as shares of the unit, (batch, experts), summing to 1.

    For a softmax these are the weights themselves.
    """
    strength = weights.abs()
    if strength.ndim == 3:
        strength = strength.mean(1)
    return strength / strength.sum(-1, keepdim=True).clamp_min(_LEAST)


def balance_loss(said: Weights) -> Tensor:
    """MoLE's gating balance loss: -sum_i log q_i (equations 14 and 15), with its gradient.

    q_i is the mean share of expert i over all units and rows. It is least, N log N, at q_i = 1/N:
    no expert may be forgotten everywhere, and each unit may still prefer one.
    """
    q = torch.stack([shares(weights).mean(0) for _, weights in said]).mean(0)  # (experts,)
    return -q.clamp_min(_LEAST).log().sum()


def distance_from_sum(said: Weights) -> Tensor:
    """How far gates g are from the plain sum of the LoRAs, where each speaks with weight 1.

    The mean over units, rows and experts of (g - 1)^2. Of gates that weigh each token, an expert's
    tokens count by how loud it is there: one that is silent in a place, because nobody calls it
    there, is neither near nor far.
    """
    each: list[Tensor] = []
    for _, weights in said:
        g = weights if weights.ndim == 3 else weights[:, None]
        loud = g.detach().abs() if weights.ndim == 3 else (g != 0).float()
        away = ((g - 1).square() * loud).sum(1) / loud.sum(1).clamp_min(_LEAST)
        each.append(away.mean())
    return torch.stack(each).mean()


def entropy(said: Weights) -> float:
    """The mean entropy of the shares over units and rows, divided by log N: 1 is even, 0 is one
    expert alone everywhere."""
    if not said:
        return 0.0
    values: list[Tensor] = []
    for _, weights in said:
        share = shares(weights.detach())
        count = max(share.shape[-1], 2)
        bits = -(share * share.clamp_min(_LEAST).log()).sum(-1)
        values.append(bits.mean() / torch.tensor(float(count)).log())
    return float(torch.stack(values).mean())


def distance(error: Tensor, strength: Tensor) -> Tensor:
    """Mean square of the error of each row, (batch,), as a part of what the teacher changes at all.

    strength: (batch,), the mean square by which the row's teacher differs from the bare model: 1
    means as far from the teacher as the bare model is, whatever the expert's own loudness.
    """
    errors = error.float().square().flatten(1).mean(1)
    return errors / strength.clamp_min(_LEAST)


def mean_by_group(values: Tensor, groups: Sequence[str]) -> dict[str, float]:
    """The mean of the rows of each group."""
    return {
        group: float(values[[i for i, its in enumerate(groups) if its == group]].mean())
        for group in dict.fromkeys(groups)
    }
