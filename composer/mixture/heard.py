"""Who may speak in a unit, as its learned gate needs to know it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heard:
    """What follows from a mask and from who has anything to say: all (experts,).

    A strength learnt for all experts together becomes `shift + scale * strength` when only some of
    them speak. An expert with nobody beside it speaks as it would alone, with weight 1; between
    that and all of them it is a straight line; those who may not speak get zero.

    off: bool, who may not speak.
    """

    off: Tensor
    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, mask: Tensor, present: Tensor) -> Heard:
        """mask: bool, who may speak; present: bool, who has anything to say."""
        here = mask & present
        others = (present.sum() - 1).clamp_min(1)
        missing = (present.sum() - here.sum()) / others
        return cls(~here, here * missing, here * (1.0 - missing))


class Ear:
    """Works out who may speak, again only when that has changed: gates are asked at each step."""

    def __init__(self) -> None:
        self._known: tuple[Tensor, int, Tensor, int, Heard] | None = None

    def hear(self, mask: Tensor, present: Tensor) -> Heard:
        """`Heard.of`, remembered for these two tensors until one of them is written to."""
        # Tensors of inference mode do not say when they were written to.
        if torch.compiler.is_compiling() or mask.is_inference() or present.is_inference():
            return Heard.of(mask, present)
        known = self._known
        if (
            known is None
            or known[0] is not mask
            or known[1] != mask._version
            or known[2] is not present
            or known[3] != present._version
        ):
            heard = Heard.of(mask, present)
            self._known = known = (mask, mask._version, present, present._version, heard)
        return known[4]

    def __deepcopy__(self, memo: object) -> Ear:
        return Ear()
