"""The cell that holds the weights of one unit: written by the unit, read by its sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Ranks = tuple[tuple[int, int], ...]
"""Which experts change a site, in their order, and with how many ranks each."""


class Routing(nn.Module):
    """The weights of one unit now.

    Only the unit writes it, with `keep`, and only what a gate gave: the sites may have worked
    something out from it. Everything lives in buffers, so changing it recompiles nothing under
    `torch.compile`.

    weights: float32, broadcastable: (experts,), (batch, experts) or (batch, tokens, experts); with
        the gradient of a learned gate.
    mask: bool, (experts,): which experts are on. Gates leave the others at zero.
    strength: float32, (experts,): what the weights of a gate are multiplied by.
    grid: (height, width) of the tokens of `weights`, None if they are no picture.
    words: weights at the tokens of the text, (batch, tokens, experts), for sites that see them
        beside weights for each place; None is the mean over the places. The first is nobody's.
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
        self.words: Tensor | None = None
        self._unit_strength = True
        self._all_off = False
        self._by_rank: dict[Ranks, Tensor] = {}
        self._spread: Tensor | None = None

    def keep(
        self,
        weights: Tensor,
        grid: tuple[int, int] | None = None,
        words: Tensor | None = None,
    ) -> None:
        """Hold these weights until they are changed; (experts,) after (experts,) in place, as
        compiled graphs know that buffer. Others may be needed for a gradient still to be taken."""
        self.grid, self.words = grid, words
        if weights.ndim == 1 and weights.shape == self.weights.shape:
            self._spread = None
            self.weights.copy_(weights)
        else:
            self.weights = weights

    def allow(self, mask: Tensor) -> None:
        """Set which experts are on: bool, (experts,)."""
        self.mask.copy_(mask)
        self._all_off = not bool(mask.any())

    def strengthen(self, strength: Tensor) -> None:
        """Set what a gate's weights are multiplied by, (experts,)."""
        self.strength.copy_(strength)
        self._unit_strength = bool((strength == 1).all())

    def strengthened(self, weights: Tensor) -> Tensor:
        """A gate's weights times the strength.

        Times 1 is exact, so one graph serves all strengths; while compiling, `_unit_strength` is
        not even read, for what is read is guarded.
        """
        if torch.compiler.is_compiling() or not self._unit_strength:
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
    def off(self) -> bool:
        """Whether all experts are off, known without reading a tensor.

        Never true while compiling: as a Python value it would cost a recompilation at each change.
        `join` does the same there.
        """
        return not torch.compiler.is_compiling() and self._all_off

    def join(self, output: Tensor, delta: Tensor) -> Tensor:
        """Add the experts' change to the base's output, exactly nothing if all are off.

        Adding a zero is not exact: -0.0 + 0.0 is 0.0. Outside a compiled graph `off` has been
        asked before; inside one the choice is fused with the addition.
        """
        total = output + delta.to(output.dtype)
        if torch.compiler.is_compiling():
            return torch.where(self.mask.any(), total, output)
        return total

    def __deepcopy__(self, memo: dict[int, Any]) -> Routing:
        """Without the gradient of a learned gate's weights: it cannot be copied."""
        twin = memo[id(self)] = Routing(self.mask.shape[0])
        twin.weights = self.weights.detach().clone()
        twin.mask = self.mask.clone()
        twin.strength, twin._unit_strength = self.strength.clone(), self._unit_strength
        twin.grid, twin.training = self.grid, self.training
        twin._all_off = self._all_off
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Routing:
        """Follow `.to(device)` but not `.half()`: weights stay float32."""
        kept = self.weights, self.strength
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        self.weights, self.strength = (each.to(self.mask.device) for each in kept)
        return self
