"""One difference made of those of several LoRAs, at one site: the published ways of merging.

All take the LoRAs' factors with their weights and give factors again: thin ones where the method
keeps them thin, else the whole difference beside an identity. In the equations M_i is w_i dW_i, a
matrix (out, in · kh · kw). A changed bias is added up exactly, whatever happens to the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.experts import Expert
from composer.experts.deltas import thin
from composer.experts.low_rank import LowRank

_TINY = 1e-6
ZIP_STEPS, ZIP_RATE = 100, 0.01
"""Of Adam, in ZipLoRA."""

Weighted = Sequence[tuple[LowRank, float]]
"""The LoRAs that change the site, each with its weight."""


def added(loras: Weighted) -> LowRank:
    """sum_i M_i exactly, of as many ranks as the LoRAs have together."""
    first = loras[0][0]
    downs = [factors.down.flatten(1) for factors, _ in loras]
    ups = [factors.up.flatten(1) * (factors.scale * weight) for factors, weight in loras]
    offset = None
    if any(factors.offset is not None for factors, _ in loras):
        offset = torch.cat(
            [f.down.new_zeros(f.rank) if f.offset is None else f.offset for f, _ in loras]
        )
    return _as_host(torch.cat(ups, 1), torch.cat(downs), first, offset)


def ties(loras: Weighted, density: float, keep: Tensor | None = None) -> LowRank:
    """TIES (arXiv 2306.01708): of each dW_i the largest `density` in magnitude; of each number the
    sign that most of all weighs; the mean of the M_i that have it.

    keep: (LoRAs, out, in) what is kept in place of the largest, scaled: DARE's choice.
    """
    deltas = torch.stack([factors.dense().flatten(1) for factors, _ in loras])
    trimmed = (
        torch.stack([largest(delta, density) for delta in deltas])
        if keep is None
        else deltas * keep
    )
    return _whole(_elected(trimmed, [weight for _, weight in loras]), loras)


def _elected(deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """(LoRAs, ...) -> (...): signs elected by the sum, and the mean of those that have them."""
    elected = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    agreeing = deltas.sign() == elected
    scaled = deltas * torch.tensor(weights).reshape(-1, *[1] * (deltas.ndim - 1))
    return (scaled * agreeing).sum(0) / agreeing.sum(0).clamp_min(1)


def pruned(loras: Weighted, density: float, keep: Tensor | None = None) -> LowRank:
    """sum_i of the largest `density` of each M_i in magnitude; or (`keep`) DARE (arXiv 2311.03099),
    which keeps numbers by chance, each divided by the chance."""
    kept = torch.zeros_like(loras[0][0].dense().flatten(1))
    for index, (factors, weight) in enumerate(loras):
        delta = factors.dense().flatten(1)
        kept += weight * (largest(delta, density) if keep is None else delta * keep[index])
    return _whole(kept, loras)


def largest(delta: Tensor, density: float) -> Tensor:
    """The numbers of largest magnitude, `density` of them; zero elsewhere."""
    count = int(density * delta.numel())
    chosen = delta.abs().flatten().topk(count).indices
    mask = torch.zeros(delta.numel(), dtype=delta.dtype)
    mask[chosen] = 1
    return delta * mask.reshape(delta.shape)


def by_chance(loras: Weighted, density: float, seed: int) -> Tensor:
    """(LoRAs, out, in): 1 / density where a number is kept, by chance, and 0 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(loras), *loras[0][0].dense().flatten(1).shape)
    return (torch.rand(shape, generator=generator) < density).float() / density


def knots(loras: Weighted, density: float) -> LowRank:
    """KnOTS (arXiv 2410.19735): [dW_1 .. dW_N] = U S [V_1 .. V_N], TIES on the V_i, and U S times
    what it gives. The SVD is of thin matrices: with [B_1 .. B_N] = Q R it is that of the R_i A_i.
    """
    linalg = cast(Any, torch.linalg)
    basis, joint = linalg.qr(torch.cat([f.up.flatten(1) * f.scale for f, _ in loras], 1))
    parts: list[Tensor] = []
    start = 0
    for factors, _ in loras:
        parts.append(joint[:, start : start + factors.rank] @ factors.down.flatten(1))
        start += factors.rank
    turn, values, axes = linalg.svd(torch.cat(parts, 1), full_matrices=False)
    count = int((values > values[0] * _TINY).sum())  # beyond it the axes are noise
    aligned = axes[:count].reshape(count, len(loras), -1).transpose(0, 1)
    trimmed = torch.stack([largest(part, density) for part in aligned])
    merged = _elected(trimmed, [weight for _, weight in loras])
    up = basis @ (turn[:, :count] * values[:count])
    return _as_host(up, merged, loras[0][0]).with_bias(bias_of(loras))


def projected(loras: Weighted, styles: Sequence[bool], strength: float) -> LowRank:
    """NP-LoRA (arXiv 2511.11051): of the LoRAs that are no style dW (I - mu V V^T), V the input
    directions of the styles; mu 1 takes them away in full."""
    rows = [f.down.flatten(1) for (f, _), style in zip(loras, styles, strict=True) if style]
    if not rows or len(rows) == len(loras):
        return added(loras)
    basis: Tensor = cast(Any, torch.linalg).svd(torch.cat(rows), full_matrices=False)[2]
    changed: list[tuple[LowRank, float]] = []
    for (factors, weight), style in zip(loras, styles, strict=True):
        flat = factors.down.flatten(1)
        if not style:
            flat = flat - strength * (flat @ basis.T) @ basis
        changed.append((replace(factors, down=flat.reshape(factors.down.shape)), weight))
    return added(changed)


def regmean(loras: Weighted, inputs: Sequence[Tensor], alpha: float) -> LowRank:
    """RegMean (arXiv 2212.09849): the W that is nearest to each W_0 + M_i on the inputs X_i of LoRA
    i, W - W_0 = (sum_i M_i G_i) (sum_i G_i)^-1 with G_i = X_i^T X_i / n, whose entries off the
    diagonal are multiplied by alpha. Of as many ranks as the LoRAs have.

    inputs: of each LoRA, (samples, in · kh · kw).
    """
    grams = [_shrunk(x.double().T @ x.double() / len(x), alpha) for x in inputs]
    whole = torch.stack(grams).sum(0)
    whole += _TINY * whole.diagonal().mean() * torch.eye(len(whole), dtype=whole.dtype)
    changed: list[tuple[LowRank, float]] = []
    for (factors, weight), gram in zip(loras, grams, strict=True):
        seen = factors.down.flatten(1).double() @ gram
        down: Tensor = cast(Any, torch.linalg).solve(whole, seen.T).T
        changed.append((replace(factors, down=down.float().reshape(factors.down.shape)), weight))
    return added(changed)


def _shrunk(gram: Tensor, alpha: float) -> Tensor:
    return alpha * gram + (1 - alpha) * torch.diag(gram.diagonal())


def ssr(loras: Weighted, inputs: Sequence[Tensor], ridge: float) -> LowRank:
    """SSR-Merge (arXiv 2606.10617): a router in rank space that gives each LoRA its own
    activations back. With z = A x, A being all down factors, z_k of the inputs of LoRA k, and E_k
    keeping its ranks alone,

        R = (sum_k E_k z_k z_k^T) (sum_k z_k z_k^T + lambda I)^-1,    delta = [M_i's B] R A,

    lambda being `ridge` times the mean of the diagonal.
    """
    downs = torch.cat([factors.down.flatten(1) for factors, _ in loras]).double()
    owner = torch.tensor([n for n, (factors, _) in enumerate(loras) for _ in range(factors.rank)])
    whole = torch.zeros(len(downs), len(downs), dtype=torch.float64)
    own = torch.zeros_like(whole)
    for number, x in enumerate(inputs):
        z = x.double() @ downs.T
        gram = z.T @ z / len(z)
        whole += gram
        own += gram * (owner == number)[:, None]
    whole += ridge * whole.diagonal().mean() * torch.eye(len(downs), dtype=torch.float64)
    router: Tensor = cast(Any, torch.linalg).solve(whole, own.T).T  # whole is symmetric
    ups = torch.cat([f.up.flatten(1) * (f.scale * weight) for f, weight in loras], 1)
    routed = _as_host(ups, (router @ downs).float(), loras[0][0])
    return routed.with_bias(bias_of(loras))


def zipped(loras: Weighted, inputs: Sequence[Tensor], overlap: float) -> LowRank:
    """ZipLoRA (arXiv 2311.13600), site by site: vectors m_i (in · kh · kw,), one number for each
    column, so that sum_j M_j diag(m_j) does on the inputs x of LoRA i what M_i does, and no column
    is used by two:

        sum_i |sum_j M_j diag(m_j) x - M_i x|^2 / |M_i x|^2 + lambda sum_{i<j} mean |m_i m_j|

    means over the x, from m = 1 in 100 steps of Adam at 0.01, as published. The paper's distance is
    that of the noise which the whole model predicts. Of as many ranks as the LoRAs have.

    inputs: of each LoRA, (samples, in · kh · kw). overlap: lambda.
    """
    downs = [factors.down.flatten(1).double() for factors, _ in loras]
    ups = [f.up.flatten(1).double() * (f.scale * weight) for f, weight in loras]
    # the distance is (m - e_i)^T H_i (m - e_i), with e_i 1 at LoRA i and 0 at the others, and
    # H_i = [M_j^T M_k] * X^T X, number by number
    products = [
        [a.T @ (up.T @ other) @ b for b, other in zip(downs, ups, strict=True)]
        for a, up in zip(downs, ups, strict=True)
    ]
    grams = [x.double().T @ x.double() for x in inputs]
    sizes = [max(float((products[i][i] * gram).sum()), _TINY) for i, gram in enumerate(grams)]
    grams = [gram / size for gram, size in zip(grams, sizes, strict=True)]
    own = [
        torch.stack([(row[i] * gram).sum(1) for i, gram in enumerate(grams)]).sum(0)
        for row in products
    ]
    wanted = torch.stack(own)
    whole = torch.stack(grams).sum(0)
    curve = torch.cat([torch.cat([each * whole for each in row], 1) for row in products])
    m = torch.ones_like(wanted)
    optimizer: Any = torch.optim.Adam([m], lr=ZIP_RATE)
    for _ in range(ZIP_STEPS):
        others = m.abs().sum(0) - m.abs()
        slope = 2 * ((curve @ m.flatten()).reshape(m.shape) - wanted)
        m.grad = slope + overlap / m.shape[1] * others * m.sign()
        optimizer.step()
    changed: list[tuple[LowRank, float]] = []
    for (factors, weight), down, column in zip(loras, downs, m, strict=True):
        scaled = (down * column).float().reshape(factors.down.shape)
        changed.append((replace(factors, down=scaled), weight))
    return added(changed)


def peft_linear(loras: Weighted) -> LowRank:
    """PEFT's `combination_type="linear"`: sum_i sqrt(w_i s_i) B_i times sum_i sqrt(w_i s_i) A_i,
    which holds every B_i A_j, wanted or not.

    Raises:
        ComposerError: the LoRAs have different ranks.
    """
    ranks = [factors.rank for factors, _ in loras]
    if len(set(ranks)) > 1:
        raise ComposerError(
            f"PEFT's linear merge adds up factors, which here have {' and '.join(map(str, ranks))} "
            "ranks: choose LoRAs of one rank, or the weighted sum."
        )
    up = torch.zeros_like(loras[0][0].up.flatten(1))
    down = torch.zeros_like(loras[0][0].down.flatten(1))
    for factors, weight in loras:
        root = abs(weight * factors.scale) ** 0.5
        up += factors.up.flatten(1) * (root if weight * factors.scale >= 0 else -root)
        down += factors.down.flatten(1) * root
    return _as_host(up, down, loras[0][0]).with_bias(bias_of(loras))


def compressed(factors: LowRank, rank: int) -> tuple[LowRank, float, float]:
    """The nearest difference of this rank (Eckart and Young 1936), and the energies (squares added
    up) of what is kept and of all. The bias stays as it is."""
    linalg = cast(Any, torch.linalg)
    up, down = factors.up.flatten(1) * factors.scale, factors.down.flatten(1)
    left, right = torch.eye(len(up)), torch.eye(down.shape[1])
    small = up @ down
    if factors.rank < min(small.shape):
        left, first = linalg.qr(up)
        right, second = linalg.qr(down.T)
        small = first @ second.T
    u, values, v = linalg.svd(small, full_matrices=False)
    energies = values.square()
    if rank >= len(values):
        return factors, float(energies.sum()), float(energies.sum())
    root = values[:rank].sqrt()
    kept = _as_host(left @ (u[:, :rank] * root), (root[:, None] * v[:rank]) @ right.T, factors)
    return (
        kept.with_bias(factors.bias()),
        float(energies[:rank].sum()),
        float(energies.sum()),
    )


def part_of(site: str) -> str:
    """The U-Net, or all text encoders together."""
    return "unet" if site.startswith("unet.") else "text_encoder"


def inner_products(
    experts: Sequence[Expert], group: Callable[[str], str] = part_of
) -> dict[str, list[list[float]]]:
    """For each group of sites the (experts, experts) sums over its sites of <dW_i, dW_j> = sum over
    entries of (B_i^T B_j) ⊙ (A_i A_j^T), without any whole difference."""
    sites = sorted({site for expert in experts for site in expert.sites})
    found = {group(site): [[0.0] * len(experts) for _ in experts] for site in sites}
    for site in sites:
        rows = found[group(site)]
        here = [(n, expert.sites[site]) for n, expert in enumerate(experts) if site in expert.sites]
        for place, (i, one) in enumerate(here):
            for j, other in here[: place + 1]:
                product = _product(one, other)
                rows[i][j] += product
                if i != j:
                    rows[j][i] += product
    return found


def total_strength(products: Sequence[Sequence[float]], weights: Sequence[float]) -> float:
    """||sum_i w_i dW_i|| / max_i |w_i| ||dW_i||, from the inner products; 0 where all is 0."""
    numbers = range(len(weights))
    whole = sum(weights[i] * weights[j] * products[i][j] for i in numbers for j in numbers)
    strongest = max(weights[i] ** 2 * products[i][i] for i in numbers)
    return max(whole / strongest, 0.0) ** 0.5 if strongest > 0 else 0.0


def _product(one: LowRank, other: LowRank) -> float:
    ups = one.up.flatten(1).double().T @ other.up.flatten(1).double()
    downs = one.down.flatten(1).double() @ other.down.flatten(1).double().T
    return float((ups * downs).sum()) * one.scale * other.scale


def merge_experts(
    experts: Sequence[Expert],
    weights: Sequence[Mapping[str, float]],
    merge: Callable[[str, Weighted, Sequence[int]], LowRank],
    rank: int = 0,
) -> tuple[Expert, float]:
    """One expert of several, and the share of its U-Net energy that `rank` keeps.

    merge: from a site of the U-Net, the LoRAs there and their numbers to one difference. In text
        encoders they are added up with their weights.
    rank: of each merged difference in the U-Net; 0 keeps all.
    """
    sites: dict[str, LowRank] = {}
    kept = whole = 0.0
    for site in dict.fromkeys(site for expert in experts for site in expert.sites):
        part = "unet" if site.startswith("unet.") else "text_encoder"
        here = [n for n, expert in enumerate(experts) if site in expert.sites]
        loras = [(experts[n].sites[site], weights[n][part]) for n in here]
        if part != "unet":
            sites[site] = added(loras)
            continue
        sites[site] = merge(site, loras, here)
        if rank:
            sites[site], some, all_of_it = compressed(sites[site], rank)
            kept, whole = kept + some, whole + all_of_it
    return replace(experts[0], sites=sites), kept / whole if whole else 1.0


def strongest_sums(experts: Sequence[Expert], style: int) -> tuple[dict[str, list[float]], float]:
    """For each site of the U-Net that both LoRAs change the sums of the K = r_1 r_2 largest numbers
    of each dW in magnitude, and gamma = sum |dW_other| / sum |dW_style| over all of them."""
    found: dict[str, list[float]] = {}
    totals = [0.0] * len(experts)
    for site in experts[0].sites if len(experts) == 2 else ():
        if not site.startswith("unet.") or site not in experts[1].sites:
            continue
        both = [expert.sites[site] for expert in experts]
        sizes = [factors.dense().abs().flatten() for factors in both]
        count = min(both[0].rank * both[1].rank, sizes[0].numel())
        found[site] = [float(size.topk(count).values.sum()) for size in sizes]
        totals = [total + float(size.sum()) for total, size in zip(totals, sizes, strict=True)]
    return found, totals[1 - style] / totals[style] if found and totals[style] else 1.0


def bias_of(loras: Weighted) -> Tensor | None:
    """sum_i of what each adds to the bias, times its weight; None for nothing."""
    found = [(f.bias(), weight) for f, weight in loras]
    given = [bias * weight for bias, weight in found if bias is not None]
    return torch.stack(given).sum(0) if given else None


def _whole(matrix: Tensor, loras: Weighted) -> LowRank:
    return _as_host(*thin(matrix), loras[0][0]).with_bias(bias_of(loras))


def _as_host(up: Tensor, down: Tensor, like: LowRank, offset: Tensor | None = None) -> LowRank:
    """up (out, rank) and down (rank, in · kh · kw) in the form of `like`."""
    rank, ones = down.shape[0], (1 for _ in like.up.shape[2:])
    return LowRank(
        down=down.reshape(rank, *like.down.shape[1:]).contiguous(),
        up=up.reshape(up.shape[0], rank, *ones).contiguous(),
        scale=1.0,
        offset=offset,
    )
