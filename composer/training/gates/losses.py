"""The losses of gate training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from composer.mixture.stand_in import Weights

_LEAST = 1e-8


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of gate training: its loss with a gradient, figures for the report by name, and
    the gates' weights by unit."""

    loss: Tensor
    figures: dict[str, float]
    weights: Weights


def shares(weights: Tensor) -> Tensor:
    """Weights (batch, [tokens,] experts) as shares of the unit, (batch, experts), summing to 1.

    For a softmax these are the weights themselves.
    """
    strength = weights.abs()
    if strength.ndim == 3:
        strength = strength.mean(1)
    return strength / strength.sum(-1, keepdim=True).clamp_min(_LEAST)


def balance_loss(weights: Weights) -> Tensor:
    """MoLE's gating balance loss: -sum_i log q_i (equations 14 and 15), with its gradient.

    q_i is the mean share of expert i over all units and rows. It is least, N log N, at q_i = 1/N:
    no expert may be forgotten everywhere, and each unit may still prefer one.
    """
    q = torch.stack([shares(each).mean(0) for _, each in weights]).mean(0)  # (experts,)
    return -q.clamp_min(_LEAST).log().sum()


def distance_from_sum(weights: Weights) -> Tensor:
    """How far gates g are from the plain sum of the LoRAs, in which each has weight 1.

    The mean over units, rows and experts of (g - 1)^2. Of gates that weigh each token, an expert's
    tokens count by |g|: where an expert has no place, it is neither near nor far.
    """
    each: list[Tensor] = []
    for _, given in weights:
        g = given if given.ndim == 3 else given[:, None]
        count = g.detach().abs() if given.ndim == 3 else (g != 0).float()
        away = ((g - 1).square() * count).sum(1) / count.sum(1).clamp_min(_LEAST)
        each.append(away.mean())
    return torch.stack(each).mean()


def entropy(weights: Weights) -> float:
    """The mean entropy of the shares over units and rows, divided by log N: 1 is even, 0 is one
    expert alone everywhere."""
    if not weights:
        return 0.0
    values: list[Tensor] = []
    for _, each in weights:
        share = shares(each.detach())
        count = max(share.shape[-1], 2)
        bits = -(share * share.clamp_min(_LEAST).log()).sum(-1)
        values.append(bits.mean() / torch.tensor(float(count)).log())
    return float(torch.stack(values).mean())
