"""The two thin factors by which a LoRA changes one site."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """ΔW = scale · up · down (Hu et al. 2021, equation 3; scale = alpha / rank).

    Linear site: `down` (rank, in), `up` (out, rank). Conv2d site: `down` (rank, in, kh, kw), `up`
    (out, rank, 1, 1): a k×k convolution into the rank, then a 1×1 convolution out of it.
    An adapter that changes the bias too has an `offset` (rank,): it adds scale · up · offset to it,
    for what the site gives is scale · up · (down · x + offset).
    """

    down: Tensor
    up: Tensor
    scale: float
    offset: Tensor | None = None

    @property
    def rank(self) -> int:
        """The width between the two factors."""
        return self.down.shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that this changes: (out, in) or (out, in, kh, kw)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def bias(self) -> Tensor | None:
        """What is added to the site's bias (out,); None for nothing."""
        if self.offset is None:
            return None
        return torch.mul(self.up.flatten(1).float() @ self.offset.float(), self.scale)

    def with_bias(self, bias: Tensor | None) -> LowRank:
        """The same with (out,) added to the bias: one rank more, which the input does not reach and
        the offset fills. None adds nothing."""
        if bias is None:
            return self
        before = torch.zeros(self.rank) if self.offset is None else self.offset
        up = self.up * self.scale
        return LowRank(
            down=torch.cat((self.down, torch.zeros_like(self.down[:1]))),
            up=torch.cat((up, bias.float().reshape(up[:, :1].shape)), dim=1),
            scale=1.0,
            offset=torch.cat((before, torch.ones(1))),
        )

    def dense(self) -> Tensor:
        """ΔW itself, in the shape of the site's weight."""
        product = self.up.flatten(1) @ self.down.flatten(1)  # (out, in · kh · kw)
        return torch.mul(product, self.scale).reshape(self.weight_shape)
