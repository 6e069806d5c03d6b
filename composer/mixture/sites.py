"""Sites: the stand-ins for one Linear or Conv2d, with the low-rank factors of all experts there.

    y = W x + B_cat ((g (x) 1_r) * (A_cat x + o_cat))

A_cat stacks the experts' down factors, B_cat their up factors, o_cat their offsets (with which they
change the bias; most have none), g (x) 1_r repeats each expert's gate
weight over its ranks. So N experts cost two thin products, whatever their ranks; an expert that
does not change this site has no rows here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.mixture.routing import Routing


class LowRankLike(Protocol):
    """delta = scale * up @ down; down (rank, in[, kh, kw]), up (out, rank[, 1, 1]).

    scale * up @ offset is added to the bias; offset (rank,).
    """

    @property
    def down(self) -> Tensor: ...

    @property
    def up(self) -> Tensor: ...

    @property
    def scale(self) -> float: ...

    @property
    def offset(self) -> Tensor | None: ...


class Site(nn.Module, ABC):
    """One module of the host model and what the experts add to it.

    base: the original module, untouched. (Named so, as diffusers unwraps a child `base_layer`.)
    down: (ranks, in[, kh, kw]) and up: (out, ranks[, 1, 1]): the experts' factors one after the
        other in the host's dtype, each expert's scale multiplied into its down factor.
    offset: (ranks,): what is added to the product with down; None where no expert changes the bias.
    owner: (ranks,): which expert each rank belongs to.
    ranks: the same, as (expert, rank) of each expert that changes this site.
    routing: the weight of each expert, shared by the sites of a unit.
    reads_text: whether its input is the text and not the picture.
    """

    base: nn.Linear | nn.Conv2d
    down: Tensor
    up: Tensor
    offset: Tensor | None
    owner: Tensor
    reads_text: bool = False

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        factors: Sequence[LowRankLike | None],
        routing: Routing,
    ) -> None:
        """factors: one entry for each expert of the mixture, None where it changes nothing."""
        super().__init__()
        self.base = base
        self.routing = routing
        weight = base.weight
        outputs, inputs, *kernel = weight.shape
        downs: list[Tensor] = []
        ups: list[Tensor] = []
        offsets: list[Tensor] = []
        ranks: list[tuple[int, int]] = []
        for expert, factor in enumerate(factors):
            if factor is None:
                continue
            rank = factor.down.shape[0]
            # A 1x1 convolution and a Linear are the same: files mix their shapes.
            down = factor.down.detach().reshape(rank, inputs, *kernel)
            up = factor.up.detach().reshape(outputs, rank, *(1 for _ in kernel))
            # In float32: a small scale would push float16 factors below the normal numbers.
            downs.append((down.float() * factor.scale).to(weight))
            ups.append(up.to(weight))
            offset = torch.zeros(rank) if factor.offset is None else factor.offset.detach()
            offsets.append((offset.float() * factor.scale).to(weight))
            ranks.append((expert, rank))
        self.register_buffer("down", torch.cat(downs, dim=0), persistent=False)
        self.register_buffer("up", torch.cat(ups, dim=1), persistent=False)
        given = any(factor is not None and factor.offset is not None for factor in factors)
        self.register_buffer("offset", torch.cat(offsets) if given else None, persistent=False)
        self.ranks = tuple(ranks)
        owner = torch.tensor([e for e, rank in ranks for _ in range(rank)], device=weight.device)
        self.register_buffer("owner", owner, persistent=False)
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The base's weight: diffusers and T5 read its dtype and shape."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """Linear: (batch, ..., in) -> (batch, ..., out). Conv2d: (batch, in, height, width) -> same
        as the base."""
        output = cast(Tensor, self.base(hidden))
        if self.routing.off:
            return output
        return self.add(output, self.low(hidden))

    def delta(self, hidden: Tensor) -> Tensor:
        """What the experts add to the base's output for this input."""
        return self.up_of(self.low(hidden))

    @abstractmethod
    def low(self, hidden: Tensor) -> Tensor:
        """(g (x) 1_r) * (A_cat x + o_cat), in the dtype of the product."""

    @abstractmethod
    def up_of(self, low: Tensor) -> Tensor:
        """B_cat low."""

    def add(self, output: Tensor, low: Tensor) -> Tensor:
        """The base's output with what the experts add to it."""
        return self.routing.join(output, self.up_of(low))

    def gate(self) -> Tensor:
        """g (x) 1_r: float32, (ranks,), (batch, ranks) or (batch, tokens, ranks)."""
        return self.routing.by_rank(self.owner, self.ranks)


class ExpertLinear(Site):
    """A Linear with experts. Tokens are the second axis of the input, if it has three.

    Where a unit's weights are for each of its tokens and this site sees others, it takes their
    mean; for words, in cross-attention, their own weights if there are such.
    """

    def low(self, hidden: Tensor) -> Tensor:
        low = functional.linear(hidden, self.down, self.offset)  # (batch, ..., ranks)
        gate = self.gate()
        tokens = low.shape[1:-1]
        if gate.ndim == 3 and self.reads_text and self.routing.words is not None:
            gate = self._of_words(tokens)
        elif gate.ndim == 3 and (self.reads_text or gate.shape[1] != tokens.numel() or not tokens):
            gate = gate.mean(dim=1)
        if gate.ndim == 3:
            gate = gate.reshape(low.shape)
        elif gate.ndim == 2:
            for _ in tokens:
                gate = gate.unsqueeze(1)  # (batch, 1, ranks)
        return (low * gate).to(low.dtype)

    def _of_words(self, tokens: torch.Size) -> Tensor:
        """(batch, tokens, ranks): a text is longer than its prompt where the other one is."""
        words = cast(Tensor, self.routing.words).index_select(-1, self.owner)
        more = tokens.numel() - words.shape[1]
        return torch.cat([words, words[:, :1].expand(-1, more, -1)], 1) if more > 0 else words

    def up_of(self, low: Tensor) -> Tensor:
        return functional.linear(low, self.up)

    def add(self, output: Tensor, low: Tensor) -> Tensor:
        """As one product that begins with the base's output, in its place where nobody derives."""
        alike = low.dtype == output.dtype == self.up.dtype  # not so under autocast
        if torch.compiler.is_compiling() or not alike or low.shape[:-1] != output.shape[:-1]:
            return super().add(output, low)
        rows = output.reshape(-1, output.shape[-1])
        add = rows.addmm if torch.is_grad_enabled() else rows.addmm_
        return add(low.reshape(-1, low.shape[-1]), self.up.t()).view(output.shape)


class ExpertConv2d(Site):
    """A Conv2d with experts. Tokens are the positions of its output, row by row.

    Where the output is larger or smaller than what the unit's gate saw, the weights are resized.
    """

    def low(self, hidden: Tensor) -> Tensor:
        # The base's own stride, padding (and its mode) and dilation.
        conv = cast(nn.Conv2d, self.base)
        low = conv._conv_forward(hidden, self.down, self.offset)  # pyright: ignore[reportPrivateUsage]
        gate = self.gate()
        if gate.ndim == 3:
            gate = _as_map(gate, self.routing.grid, (low.shape[2], low.shape[3]))
        else:
            gate = gate[..., None, None]  # ([batch,] ranks, 1, 1)
        return (low * gate).to(low.dtype)

    def up_of(self, low: Tensor) -> Tensor:
        return functional.conv2d(low, self.up)


def _as_map(gate: Tensor, grid: tuple[int, int] | None, size: tuple[int, int]) -> Tensor:
    """(batch, tokens, ranks) -> (batch, ranks, height, width), at the size of an output.

    grid: of the tokens; None if they are those of the output.
    """
    batch, _, ranks = gate.shape
    seen = gate.transpose(1, 2).reshape(batch, ranks, *(grid or size))
    if grid is None or grid == size:
        return seen
    return functional.interpolate(seen, size=size, mode="bilinear", align_corners=False)
