"""Losses on what routers decide: the balance of their experts, and the size of their logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from composer.mixlora.rows import Routed

Over = Literal["all", "layer"]


def balance_loss(routed: Sequence[Routed], *, over: Over = "all") -> Tensor:
    """N Σ_j Σ_e f_je P_e (MixLoRA, equations 8 and 9, as its authors run them), no coefficient.

    f_je is the part of the tokens whose j-th choice is expert e, P_e the mean probability of e,
    over the tokens that count. Balanced, it is the number of choices (2 for the top 2).

    routed: of one adapter. over: "all" takes f and P over the tokens of all layers together, as the
    authors do, so that layers may still specialise; "layer" balances each, and gives the mean.

    Returns a float32 scalar with a gradient; 0 where nothing was routed.
    """
    if over == "layer" and routed:
        return torch.stack([balance_loss([one]) for one in routed]).mean()
    counts: list[Tensor] = []
    sums: list[Tensor] = []
    tokens: list[Tensor] = []
    for one in routed:
        experts = one.logits.shape[-1]
        weight = _weight(one)  # (tokens,)
        chosen = one.chosen.reshape(-1, one.chosen.shape[-1])  # (tokens, choices)
        hot = functional.one_hot(chosen + 1, experts + 1)[..., 1:]  # (tokens, choices, experts)
        counts.append((weight[:, None, None] * hot).sum(dim=0))  # (choices, experts)
        sums.append(weight @ one.logits.reshape(-1, experts).softmax(dim=-1))
        tokens.append(weight.sum())
    if not tokens:
        return torch.zeros(())
    total = torch.stack(tokens).sum().clamp_min(1.0)
    f, p = torch.stack(counts).sum(dim=0) / total, torch.stack(sums).sum(dim=0) / total
    return p.shape[0] * (f * p).sum()


def z_loss(routed: Iterable[Routed]) -> Tensor:
    """The mean of log² Σ_e exp(logit_e) over the tokens that count (Zoph et al. 2022)."""
    squares: list[Tensor] = []
    tokens: list[Tensor] = []
    for one in routed:
        weight = _weight(one)
        squares.append((one.logits.logsumexp(dim=-1).flatten() ** 2 * weight).sum())
        tokens.append(weight.sum())
    if not tokens:
        return torch.zeros(())
    return torch.stack(squares).sum() / torch.stack(tokens).sum().clamp_min(1.0)


def loads(routed: Iterable[Routed]) -> dict[str, Tensor]:
    """By host the part of all choices that went to each expert, (experts,), summing to 1."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for one in routed:
            experts = one.logits.shape[-1]
            hot = functional.one_hot(one.chosen + 1, experts + 1)[..., 1:].sum(dim=-2)
            count = _weight(one) @ hot.reshape(-1, experts).float()
            found[one.host] = found.get(one.host, 0.0) + count
        return {host: count / count.sum().clamp_min(1.0) for host, count in found.items()}


def _weight(one: Routed) -> Tensor:
    """1 for each token that counts and 0 for padding, float32, (tokens,)."""
    if one.mask is None:
        return torch.ones(one.logits.shape[:-1].numel(), device=one.logits.device)
    return one.mask.flatten().float()
