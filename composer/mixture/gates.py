"""Gates: from what a unit sees to the weight of each expert there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from composer.mixture.seen import Seen


class Gate(nn.Module):
    """The contract of every gate: constant, learned, or by region.

    Whoever weighs a unit is asked as `gate(seen, mask)`, and the unit alone writes the answer into
    its `Routing`.

    experts: how many it weighs.
    looks: whether it must be asked at each pass; otherwise once for each change of the mask.
    needs_outputs, needs_time, needs_regions: what must be in `Seen`.
    needs_concepts: whether the regions must be those that attention shows, found once.
    """

    experts: int
    looks: bool = True
    needs_outputs: bool = False
    needs_time: bool = False
    needs_regions: bool = False
    needs_concepts: bool = False

    def forward(self, seen: Seen | None, mask: Tensor) -> Tensor:
        """Float32 weights: (experts,), (batch, experts) or (batch, tokens, experts).

        seen: None for a gate that does not look.
        mask: bool, (experts,): which experts are on; the others get exactly zero.
        """
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gate:
        """Follow `.to(device)` but not `.half()`: gates stay float32."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(torch.empty(0, device=tensor.device)).device)

        super()._apply(move, recurse)  # pyright: ignore[reportUnknownMemberType]
        return self


class ConstantGate(Gate):
    """The same weights whatever the unit sees: the weighted merge, W + sum_i w_i dW_i.

    weights: (experts,) as numbers, or a tensor (batch, experts) of weights for each row.
    """

    looks = False

    def __init__(self, weights: Sequence[float] | Tensor) -> None:
        super().__init__()
        # Python numbers stay so: the user gets back 0.8 and not its float32 neighbour.
        self.weights = weights if isinstance(weights, Tensor) else tuple(weights)
        self.experts = weights.shape[-1] if isinstance(weights, Tensor) else len(weights)

    def forward(self, seen: Seen | None, mask: Tensor) -> Tensor:
        """(experts,) or (batch, experts), zero where the mask is; always a tensor of its own."""
        weights = torch.as_tensor(self.weights, dtype=torch.float32, device=mask.device)
        return weights.masked_fill(~mask, 0.0)


class Masked:
    """What follows from a mask and from which experts are in a unit: all (experts,).

    A strength learnt for all experts together becomes `shift + scale * strength` when only some of
    them are on. An expert that is alone has weight 1, as without any gate; between that and all of
    them it is a straight line; those that are off get zero.

    off: bool, which experts are off or not in the unit.
    """

    def __init__(self, mask: Tensor, present: Tensor) -> None:
        """mask: bool, which experts are on; present: bool, which change anything in the unit."""
        here = mask & present
        others = (present.sum() - 1).clamp_min(1)
        missing = (present.sum() - here.sum()) / others
        self.off, self.shift, self.scale = ~here, here * missing, here * (1.0 - missing)


class MaskCache:
    """`Masked` of two tensors, worked out again only when one of them has been written to: gates
    are asked at each step, and masks change between pictures."""

    def __init__(self) -> None:
        self._known: tuple[Tensor, int, Tensor, int, Masked] | None = None

    def __call__(self, mask: Tensor, present: Tensor) -> Masked:
        # Tensors of inference mode do not say when they were written to.
        if torch.compiler.is_compiling() or mask.is_inference() or present.is_inference():
            return Masked(mask, present)
        known = self._known
        if (
            known is None
            or known[0] is not mask
            or known[1] != mask._version
            or known[2] is not present
            or known[3] != present._version
        ):
            masked = Masked(mask, present)
            self._known = known = (mask, mask._version, present, present._version, masked)
        return known[4]

    def __deepcopy__(self, memo: object) -> MaskCache:
        return MaskCache()
