"""How strong the differences of an expert are, and whether one direction of them stands out.

A LoRA with one singular value far above the others is fine alone and spoils the picture beside
another one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from composer.experts.low_rank import LowRank

SPIKE = 0.9
"""Of a site's energy in its largest singular value: above it and a rank above 1, it is a spike."""

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
    up, down = factors.up.flatten(1).double(), factors.down.flatten(1).double()
    linalg = cast(Any, torch.linalg)
    if factors.rank < min(up.shape[0], down.shape[1]):
        # up = Q R and downᵀ = P S have orthonormal Q and P, so R Sᵀ has the same values.
        small = linalg.qr(up)[1] @ linalg.qr(down.T)[1].T
    else:
        small = up @ down
    return cast(Tensor, linalg.svdvals(small)) * abs(factors.scale)
