"""The k strongest experts: how a gate becomes a router (MixLoRA, arXiv 2404.15159, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def strongest(strength: Tensor, off: Tensor, k: int) -> Tensor:
    """The k with the greatest strength among those that may speak, (..., k), the strongest first.

    strength: (..., experts). off: bool, (experts,), who may not speak; where fewer than k may, the
    last places hold some of these.
    """
    lowest = torch.finfo(strength.dtype).min
    return strength.masked_fill(off, lowest).topk(k, dim=-1).indices


def all_but(chosen: Tensor, like: Tensor) -> Tensor:
    """Bool, of the shape of `like` (..., experts): who is not among `chosen` (..., k)."""
    return torch.ones_like(like, dtype=torch.bool).scatter(-1, chosen, False)
