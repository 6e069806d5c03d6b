"""How strong the differences of an expert are, and whether one direction of them stands out.

A LoRA with one singular value far above the others is fine alone and spoils the picture beside
another one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from composer.experts.low_rank import LowRank

SPIKE = 0.9
"""Of a site's energy in its largest singular value: above it and a rank above 1, it is a spike."""

LEAST = 1e-6
"""Of the largest singular value: below it, one is the rounding of numbers in float32."""

_linalg = cast(Any, torch.linalg)  # its own annotations are incomplete

# As diffusers and as the original code call them, with dots or underscores.
_BLOCK = re.compile(
    r"(?:down|up)_blocks[._]\d+|mid_block|(?:input|output)_blocks[._]\d+|middle_block"
    r"|layers[._]\d+"
)


@dataclass(frozen=True, kw_only=True)
class Health:
    """Of all sites of an expert.

    norm: of all differences together (Frobenius').
    energy: of the squares of all numbers, the share of each block, the largest first.
    largest: the largest singular value of any site, and the site.
    spike: the median over sites of the energy in the largest singular value.
    spikes: the sites where it is above `SPIKE` though the rank is above 1.
    """

    norm: float
    energy: Mapping[str, float]
    largest: tuple[float, str]
    spike: float
    spikes: tuple[str, ...]


@torch.no_grad()
def health_of(sites: Mapping[str, LowRank]) -> Health:
    """Measure an expert; every site's singular values are worked out."""
    energy: dict[str, float] = defaultdict(float)
    largest = (0.0, "")
    shares: dict[str, float] = {}
    for site, factors in sites.items():
        values = singular_values(factors)
        squares = values.square()
        total = float(squares.sum())
        energy[block_of(site)] += total
        largest = max(largest, (float(values.max()), site))
        if total > 0:
            shares[site] = float(squares.max()) / total
    whole = sum(energy.values())
    blocks = sorted(energy.items(), key=lambda item: -item[1])
    return Health(
        norm=whole**0.5,
        energy={block: part / whole for block, part in blocks} if whole else {},
        largest=largest,
        spike=sorted(shares.values())[len(shares) // 2] if shares else 0.0,
        spikes=tuple(
            site for site, share in shares.items() if share > SPIKE and sites[site].rank > 1
        ),
    )


def block_of(site: str) -> str:
    """What a site is counted to: its part of the model, and there the block or layer around it."""
    part, _, module = site.partition(".")
    block = _BLOCK.search(module)
    return f"{part}.{block[0]}" if block else part


def singular_values(factors: LowRank) -> Tensor:
    """Of ΔW, as a matrix: by small matrices, where the factors are thin."""
    return cast(Tensor, _linalg.svdvals(_inner(factors)[0])) * abs(factors.scale)


@torch.no_grad()
def axes_of(factors: LowRank) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of what ΔW reads, (in · kh · kw, n), and of what it gives, (out, n).

    n is its rank in numbers, 0 where it is nothing: how many singular values are above `LEAST` of
    the largest.
    """
    inner, right, left = _inner(factors)
    turn, values, v = cast("tuple[Tensor, ...]", _linalg.svd(inner, full_matrices=False))
    count = int((values > LEAST * values[0]).sum())
    reads, gives = v[:count].T, turn[:, :count]
    return (
        reads if right is None else right @ reads,
        gives if left is None else left @ gives,
    )


@torch.no_grad()
def without_spikes(sites: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The same differences with the largest singular value σ₁ of each spike lowered to the second.

    ΔW' = ΔW (I - (1 - σ₂ / σ₁) v vᵀ), v being the right singular vector of σ₁. It is `down` alone
    that changes, so the rank, the scale and what is added to a bias stay.
    """
    return dict(sites) | {site: _capped(sites[site]) for site in health_of(sites).spikes}


def _capped(factors: LowRank) -> LowRank:
    inner, basis, _ = _inner(factors)
    _, values, right = cast("tuple[Tensor, ...]", _linalg.svd(inner, full_matrices=False))
    v = right[0] if basis is None else basis @ right[0]  # (in · kh · kw)
    down = factors.down.flatten(1).double()
    down = down - (1 - values[1] / values[0]) * torch.outer(down @ v, v)
    return replace(factors, down=down.to(factors.down.dtype).reshape(factors.down.shape))


def _inner(factors: LowRank) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A matrix M with the singular values of up · down, and P (in · kh · kw, rank) and Q (out,
    rank) if its right and left singular vectors are to be multiplied by them: up = Q R and
    downᵀ = P S have orthonormal Q and P, so M = R Sᵀ will do. Of thick factors M is the product
    itself."""
    up, down = factors.up.flatten(1).double(), factors.down.flatten(1).double()
    if factors.rank >= min(up.shape[0], down.shape[1]):
        return up @ down, None, None
    basis, right = cast("tuple[Tensor, Tensor]", _linalg.qr(down.T))
    gives, left = cast("tuple[Tensor, Tensor]", _linalg.qr(up))
    return left @ right.T, basis, gives
