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
        part, _, module = site.partition(".")
        block = _BLOCK.search(module)
        energy[f"{part}.{block[0]}" if block else part] += total
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


def singular_values(factors: LowRank) -> Tensor:
    """Of ΔW, as a matrix: by small matrices, where the factors are thin."""
    return cast(Tensor, _linalg.svdvals(_inner(factors)[0])) * abs(factors.scale)


@torch.no_grad()
def without_spikes(sites: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The same differences with the largest singular value σ₁ of each spike lowered to the second.

    ΔW' = ΔW (I - (1 - σ₂ / σ₁) v vᵀ), v being the right singular vector of σ₁. It is `down` alone
    that changes, so the rank, the scale and what is added to a bias stay.
    """
    return dict(sites) | {site: _capped(sites[site]) for site in health_of(sites).spikes}


def _capped(factors: LowRank) -> LowRank:
    inner, basis = _inner(factors)
    _, values, right = cast("tuple[Tensor, ...]", _linalg.svd(inner, full_matrices=False))
    v = right[0] if basis is None else basis @ right[0]  # (in · kh · kw)
    down = factors.down.flatten(1).double()
    down = down - (1 - values[1] / values[0]) * torch.outer(down @ v, v)
    return replace(factors, down=down.to(factors.down.dtype).reshape(factors.down.shape))


def _inner(factors: LowRank) -> tuple[Tensor, Tensor | None]:
    """A matrix M with the singular values of up · down, and P (in · kh · kw, rank) if its right
    singular vectors are to be multiplied by it: up = Q R and downᵀ = P S have orthonormal Q and P,
    so M = R Sᵀ will do. Of thick factors M is the product itself."""
    up, down = factors.up.flatten(1).double(), factors.down.flatten(1).double()
    if factors.rank >= min(up.shape[0], down.shape[1]):
        return up @ down, None
    basis, right = cast("tuple[Tensor, Tensor]", _linalg.qr(down.T))
    return cast(Tensor, _linalg.qr(up)[1]) @ right.T, basis
