"""Gates: from what a unit sees to how much of each expert speaks there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Gate(Protocol):
    """The contract of every gate, constant or learned.

    hidden: what the unit sees, (batch, tokens, width), or None for a gate that looks at nothing.
    mask: bool, (experts,): who may speak; the others get exactly zero.
    Returns float32 weights: (experts,), (batch, experts) or (batch, tokens, experts).
    """

    def __call__(self, hidden: Tensor | None, mask: Tensor) -> Tensor: ...


class ConstantGate(nn.Module):
    """The same weights whatever the unit sees: the weighted merge, W + sum_i w_i dW_i.

    As it looks at nothing it is asked only when its weights or the mask change.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        # Python numbers: the user gets back 0.8 and not its float32 neighbour.
        self.weights = tuple(weights)

    def forward(self, hidden: Tensor | None, mask: Tensor) -> Tensor:
        """(experts,), zero where the mask is."""
        weights = torch.tensor(self.weights, dtype=torch.float32, device=mask.device)
        return weights.masked_fill(~mask, 0.0)
