"""Tokens sorted by the expert they go to, and the sparse part of an FFN over them.

For the tokens t of expert e, in one segment of the sorted tokens:

    u_i = common_i[t] + s B_ie A_ie drop(x[t])        (W_1 x and W_3 x, computed once for all)
    v   = middle(u_1, ...)
    combined[t] += w v                                (W_2 Σ w v = Σ w W_2 v: W_2 runs once as well)
    low = A_2e drop(v)

A segment fits a processor's cache; of the size tokens x choices x inner only the masks of dropouts
are kept for the backward pass, the rest is computed again there; and an expert without tokens is
not touched. Chosen by measurement on one core (width 512, 8 experts, 2 choices, 1024 and 4096
tokens): against plain autograd over the same sorted tokens it is 1.6 and 1.9 times as fast forward
and 1.2 and 1.8 times backward; against that with torch._grouped_mm 1.3 and 1.7, and 0.85 and 1.4.
No GPU was at hand to measure one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Middle = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """Which token goes to which expert, sorted by expert.

    token: (n,), each one's place among the tokens.
    slot: (n,), its place among all choices, (tokens x choices).
    ends: for each expert where its segment ends.
    """

    token: Tensor
    slot: Tensor
    ends: tuple[int, ...]

    def segments(self) -> list[tuple[int, int, int]]:
        """(expert, begin, end) of each expert that has tokens."""
        begins = (0, *self.ends[:-1])
        both = enumerate(zip(begins, self.ends, strict=True))
        return [(expert, begin, end) for expert, (begin, end) in both if end > begin]

    def experts(self) -> Tensor:
        """(n,), the expert of each."""
        counts = [end - begin for begin, end in zip((0, *self.ends[:-1]), self.ends, strict=True)]
        device = self.token.device
        return torch.arange(len(counts), device=device).repeat_interleave(
            torch.tensor(counts, device=device)
        )


def sort_by_expert(chosen: Tensor, experts: int) -> Sorted:
    """chosen: (tokens, choices), experts' numbers, -1 for none."""
    flat = chosen.flatten()
    numbers = torch.bincount(flat + 1, minlength=experts + 1)
    counts = cast("list[int]", numbers.tolist())  # the one wait for a GPU  # pyright: ignore[reportUnknownMemberType]
    slot = flat.argsort(stable=True)[counts[0] :]
    ends = [sum(counts[1 : expert + 2]) for expert in range(experts)]
    return Sorted(token=slot // chosen.shape[1], slot=slot, ends=tuple(ends))


@dataclass(frozen=True, kw_only=True)
class Segments:
    """What does not need a gradient in `mix`.

    where: the sorted tokens.
    middle: of the FFN.
    scale: s, of all factors.
    dropout: of what the factors read, 0 outside of training; inner: of the FFN itself, before down.
    """

    where: Sorted
    middle: Middle
    scale: float
    dropout: float
    inner: float

    def alone(self, commons: Sequence[Tensor]) -> Tensor:
        """What `down` reads without any expert, (tokens, inner)."""
        return functional.dropout(self.middle(*commons), self.inner)


def mix(
    segments: Segments,
    hidden: Tensor,
    weights: Tensor,
    commons: Sequence[Tensor],
    factors: Sequence[tuple[Tensor, Tensor] | None],
    down: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The sparse part of an FFN, see above.

    hidden: (tokens, width). weights: float32, (n,), in sorted order. commons: what each input gave,
    (tokens, inner). factors: of each input, A (experts, rank, width) and B (experts, inner, rank),
    or None. down: A of the output, (experts, rank, inner), or None.

    Returns combined (tokens, inner), in the commons' dtype, and low (n, rank), empty without down.
    """
    a = [None if pair is None else pair[0] for pair in factors]
    b = [None if pair is None else pair[1] for pair in factors]
    apply = cast("Callable[..., tuple[Tensor, Tensor]]", _Mix.apply)  # pyright: ignore[reportUnknownMemberType]
    return apply(segments, len(commons), hidden, weights, *commons, *a, *b, down)


def grouped_linear(hidden: Tensor, weight: Tensor, where: Sorted) -> Tensor:
    """Each token times its expert's matrix, by plain autograd.

    hidden: (n, in), sorted. weight: (experts, out, in). Returns (n, out).
    """
    each = weight.unbind(0)
    parts = [hidden[begin:end] @ each[expert].mT for expert, begin, end in where.segments()]
    return torch.cat(parts) if parts else hidden.new_zeros(0, weight.shape[1])


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, given: Segments, count: int, hidden: Tensor, weights: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        commons, a, b = (rest[i * count : (i + 1) * count] for i in range(3))
        down: Tensor | None = rest[-1]
        adapted = any(one is not None for one in a)
        n, tokens = weights.shape[0], hidden.shape[0]
        inner = given.middle(*(common[:0] for common in commons))  # its width and dtype
        keep = _draw((n, hidden.shape[1]), given.dropout if adapted else 0.0, hidden)
        keep_inner = _draw((n, inner.shape[1]), given.inner, hidden)
        keep_down = _draw((n, inner.shape[1]), given.dropout if down is not None else 0.0, hidden)
        exact = torch.promote_types(inner.dtype, torch.float32)
        combined = hidden.new_zeros(tokens, inner.shape[1], dtype=exact)
        low = inner.new_zeros(n, 0 if down is None else down.shape[1])
        for expert, begin, end in given.where.segments():
            part = slice(begin, end)
            token = given.where.token[part]
            read = _kept(hidden[token], keep, part, given.dropout) if adapted else hidden
            seen: list[Tensor] = []
            for common, a_i, b_i in zip(commons, a, b, strict=True):
                one = common[token]
                if a_i is not None:
                    one.addmm_(read @ a_i[expert].mT, b_i[expert].mT, alpha=given.scale)
                seen.append(one)
            value = _kept(given.middle(*seen), keep_inner, part, given.inner)
            if down is not None:
                low[part] = _kept(value, keep_down, part, given.dropout) @ down[expert].mT
            combined.index_add_(0, token, (value * weights[part, None]).to(exact))
        ctx.given, ctx.count, ctx.adapted = given, count, adapted
        ctx.save_for_backward(hidden, weights, keep, keep_inner, keep_down, *rest)
        return combined.to(inner.dtype), low

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        g_combined, g_low = grad_outputs
        given: Segments = ctx.given
        hidden, weights, keep, keep_inner, keep_down, *rest = ctx.saved_tensors
        g_hidden, g_weights = torch.zeros_like(hidden), torch.zeros_like(weights)
        g_rest: list[Any] = [None if one is None else torch.zeros_like(one) for one in rest]
        count = ctx.count
        commons, a, b = (rest[i * count : (i + 1) * count] for i in range(3))
        g_commons, g_a, g_b = (g_rest[i * count : (i + 1) * count] for i in range(3))
        down, g_down = rest[-1], g_rest[-1]
        for expert, begin, end in given.where.segments():
            part = slice(begin, end)
            token = given.where.token[part]
            read = _kept(hidden[token], keep, part, given.dropout) if ctx.adapted else hidden
            seen: list[Tensor] = []
            lows: list[Any] = []
            for common, a_i, b_i in zip(commons, a, b, strict=True):
                one, low = common[token], None
                if a_i is not None:
                    low = read @ a_i[expert].mT
                    one.addmm_(low, b_i[expert].mT, alpha=given.scale)
                seen.append(one.requires_grad_())
                lows.append(low)
            with torch.enable_grad():
                raw = given.middle(*seen)
            value = _kept(raw.detach(), keep_inner, part, given.inner)
            g_value = g_combined[token]
            g_weights[part] = (g_value * value).sum(dim=-1, dtype=g_weights.dtype)
            g_value = (g_value * weights[part, None]).to(value.dtype)
            if down is not None:
                g_one = g_low[part]
                g_down[expert] = g_one.mT @ _kept(value, keep_down, part, given.dropout)
                g_value += _kept(g_one @ down[expert], keep_down, part, given.dropout)
            g_seen = torch.autograd.grad(raw, seen, _kept(g_value, keep_inner, part, given.inner))
            g_read = None
            for i, (g_one, low) in enumerate(zip(g_seen, lows, strict=True)):
                g_commons[i].index_add_(0, token, g_one)
                if low is None:
                    continue
                g_b[i][expert] = (g_one.mT @ low).mul_(given.scale)
                g_inner = (g_one @ b[i][expert]).mul_(given.scale)
                g_a[i][expert] = g_inner.mT @ read
                more = g_inner @ a[i][expert]
                g_read = more if g_read is None else g_read.add_(more)
            if g_read is not None:
                g_hidden.index_add_(0, token, _kept(g_read, keep, part, given.dropout))
        return (None, None, g_hidden, g_weights, *g_rest)


def _draw(shape: tuple[int, int], dropout: float, like: Tensor) -> Tensor | None:
    """What a dropout keeps, bool; None where it keeps all."""
    if dropout == 0.0:
        return None
    return torch.empty(shape, dtype=torch.bool, device=like.device).bernoulli_(1.0 - dropout)


def _kept(value: Tensor, keep: Tensor | None, part: slice, dropout: float) -> Tensor:
    """A segment after a dropout."""
    return value if keep is None else (value * keep[part]).div_(1.0 - dropout)
