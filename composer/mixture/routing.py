"""The cell through which a gate tells the sites of its unit how much of each expert speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Ranks = tuple[tuple[int, int], ...]
"""Which experts change a site, in their order, and with how many ranks each."""


class Routing(nn.Module):
    """What one unit's gate says now. A gate writes it, the sites of the unit read it.

    Everything lives in buffers, so changing it recompiles nothing under `torch.compile`.

    weights: float32, broadcastable: (experts,), (batch, experts) or (batch, tokens, experts).
        A constant gate sets it with `keep`. A learned gate assigns `routing.weights = ...` at each
        forward of its unit, before the sites run, and its gradient flows through. Nobody else
        writes into it: the sites may have worked something out from it.
    mask: bool, (experts,): who may speak at all. Gates leave the others at zero.
    strength: float32, (experts,): how many times what a learned gate says counts.
    grid: (height, width) of the tokens of `weights`, None if they are no picture.
    """

    weights: Tensor
    mask: Tensor
    strength: Tensor

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(experts), persistent=False)
        self.register_buffer("mask", torch.ones(experts, dtype=torch.bool), persistent=False)
        self.register_buffer("strength", torch.ones(experts), persistent=False)
        self.grid: tuple[int, int] | None = None
        self._as_said = True
        self._nobody = False
        self._by_rank: dict[Ranks, Tensor] = {}
        self._spread: Tensor | None = None

    def keep(self, weights: Tensor) -> None:
        """Hold these weights until they are changed. In place where the shape stays the same."""
        self._spread = None
        if weights.shape == self.weights.shape:
            self.weights.copy_(weights)
        else:
            self.weights = weights.to(self.weights)

    def allow(self, mask: Tensor) -> None:
        """Say which experts may speak: bool, (experts,)."""
        self.mask.copy_(mask)
        self._nobody = not bool(mask.any())

    def strengthen(self, strength: Tensor) -> None:
        """Let what a learned gate says count so many times, (experts,)."""
        self.strength.copy_(strength)
        self._as_said = bool((strength == 1).all())

    def strengthened(self, weights: Tensor) -> Tensor:
        """A learned gate's weights as they count.

        Times 1 is exact, so one graph serves all strengths; while compiling, `_as_said` is not even
        read, for what is read is guarded.
        """
        if torch.compiler.is_compiling() or not self._as_said:
            return weights * self.strength
        return weights

    def by_rank(self, owner: Tensor, ranks: Ranks) -> Tensor:
        """The weights, each repeated over the ranks of its expert.

        The sites of a unit mostly have the same ranks, and then they share one answer: as long as
        it is known to hold, and not with gradients, as a pass that is run again for the backward
        pass would find it made already and save less than the first.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.weights.index_select(-1, owner)
        if self._spread is not self.weights:
            self._by_rank, self._spread = {}, self.weights
        found = self._by_rank.get(ranks)
        if found is None:
            found = self._by_rank[ranks] = self.weights.index_select(-1, owner)
        return found

    @property
    def silent(self) -> bool:
        """Whether nobody may speak, known without reading a tensor.

        Never true while compiling: as a Python value it would cost a recompilation at each change.
        `join` does the same there.
        """
        return not torch.compiler.is_compiling() and self._nobody

    def join(self, output: Tensor, delta: Tensor) -> Tensor:
        """Add what the experts say to the base's output, exactly nothing if nobody may speak.

        Adding a zero is not exact: -0.0 + 0.0 is 0.0. Outside a compiled graph `silent` has been
        asked before; inside one the choice is fused with the addition.
        """
        total = output + delta.to(output.dtype)
        if torch.compiler.is_compiling():
            return torch.where(self.mask.any(), total, output)
        return total

    def __deepcopy__(self, memo: dict[int, Any]) -> Routing:
        """Without the gradient of the weights that a learned gate wrote: it cannot be copied."""
        twin = memo[id(self)] = Routing(self.mask.shape[0])
        twin.weights = self.weights.detach().clone()
        twin.mask = self.mask.clone()
        twin.strength, twin._as_said = self.strength.clone(), self._as_said
        twin.grid, twin.training = self.grid, self.training
        twin._nobody = self._nobody
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Routing:
        """Follow `.to(device)` but not `.half()`: weights stay float32."""
        kept = self.weights, self.strength
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        self.weights, self.strength = (each.to(self.mask.device) for each in kept)
        return self
