"""One adapter's experts at one FFN: a router, and stacked factors for its Linear modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.mixlora.factors import Factors, bias_of
from composer.mixlora.ffn import FfnForm
from composer.mixlora.router import Picks, Router, RouterSettings
from composer.mixlora.settings import LoraSettings
from composer.mixlora.sparse import Segments, grouped_linear, mix, sort_by_expert


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """What one adapter's experts made of its rows.

    inner: (rows, tokens, inner), Σ w v, for `down` to read; None where `down` has run already.
    output: (rows, tokens, width), to add to what `down` gives; None for nothing.
    total: (rows, tokens), the sum of the weights; None where it is 1.
    """

    inner: Tensor | None = None
    output: Tensor | None = None
    total: Tensor | None = None


class FfnExperts(nn.Module):
    """A router and the experts it picks from, for one FFN.

    factors: by the number of the Linear in `form.linears`, those that are adapted.
    """

    def __init__(
        self,
        form: FfnForm,
        base: nn.Module,
        *,
        router: RouterSettings,
        lora: LoraSettings,
        adapted: Sequence[str],
    ) -> None:
        """adapted: the paths of the Linear modules that get factors, out of `form.linears`."""
        super().__init__()
        self.form, self.lora = form, lora
        first = form.linear(base, form.inputs[0])
        self.router = Router(router, first.in_features).to(first.weight.device)
        self.factors = nn.ModuleDict(
            {
                str(number): Factors(lora, form.linear(base, path), router.experts)
                for number, path in enumerate(form.linears)
                if path in adapted
            }
        )

    def at(self, path: str) -> Factors | None:
        """The factors at one of the FFN's Linear modules."""
        key = str(self.form.linears.index(path))
        return cast(Factors, self.factors[key]) if key in self.factors else None

    def forward(
        self, base: nn.Module, hidden: Tensor, commons: Sequence[Tensor], picks: Picks
    ) -> Mixed:
        """Mix what the picked experts say.

        base: the FFN. hidden: (rows, tokens, width). commons: what the FFN's inputs gave, (rows,
        tokens, inner). picks: what the router said to `hidden`.
        """
        rows = hidden.shape[0]
        settings = self.router.settings
        where = sort_by_expert(picks.chosen.flatten(0, 1), settings.experts)
        weights = picks.weights.flatten()[where.slot]
        rest = None if picks.rest is None else picks.rest.flatten()
        segments = Segments(
            where=where,
            middle=self.form.bind(base),
            scale=self.lora.scale,
            dropout=self.lora.dropout if self.training else 0.0,
            inner=self.form.inner_dropout(base),
        )
        flat = hidden.flatten(0, 1).to(commons[0].dtype)
        seen = [common.flatten(0, 1) for common in commons]
        with torch.autocast(hidden.device.type, enabled=False):
            if self.lora.dora:
                output = self._by_rows(base, segments, flat, seen, weights, rest)
                return Mixed(output=_by_row(output, rows))
            inner, output = self._combined(segments, flat, seen, weights, rest)
        total = None
        if settings.strategy != "mixlora" and not settings.remainder:
            total = picks.weights.sum(dim=-1)
            total = total if picks.rest is None else total + picks.rest
        return Mixed(
            inner=_by_row(inner, rows),
            output=None if output is None else _by_row(output, rows),
            total=total,
        )

    def _combined(
        self,
        segments: Segments,
        hidden: Tensor,
        commons: Sequence[Tensor],
        weights: Tensor,
        rest: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Σ w v, (tokens, inner), and Σ w s B_2 A_2 v, (tokens, width)."""
        dtype = hidden.dtype
        pairs = [_pair(self.at(path), dtype) for path in self.form.inputs]
        down = _pair(self.at(self.form.down), dtype)
        inner, low = mix(segments, hidden, weights, commons, pairs, down and down[0])
        output = None
        if down is not None:
            low = low * (self.lora.scale * weights[:, None]).to(dtype)
            each = grouped_linear(low, down[1], segments.where)
            output = each.new_zeros(hidden.shape[0], each.shape[1])
            output = output.index_add(0, segments.where.token, each)
        if rest is not None:
            inner = inner + segments.alone(commons) * rest[:, None].to(dtype)
        return inner, output

    def _by_rows(
        self,
        base: nn.Module,
        segments: Segments,
        hidden: Tensor,
        commons: Sequence[Tensor],
        weights: Tensor,
        rest: Tensor | None,
    ) -> Tensor:
        """The same with DoRA, (tokens, width): the magnitudes stand between W_2 and the sum, so W_2
        runs on each choice of each token. By plain autograd."""
        where = segments.where
        read = hidden[where.token]
        seen = [
            self._adapted(base, path, read, common[where.token], segments)
            for path, common in zip(self.form.inputs, commons, strict=True)
        ]
        value = functional.dropout(segments.middle(*seen), segments.inner)
        each = self.form.run_down(base, value)
        each = self._adapted(base, self.form.down, value, each, segments)
        each = each * weights[:, None].to(each.dtype)
        output = each.new_zeros(hidden.shape[0], each.shape[1]).index_add(0, where.token, each)
        if rest is not None:
            alone = self.form.run_down(base, segments.alone(commons))
            output = output + alone * rest[:, None].to(alone.dtype)
        return output

    def _adapted(
        self, base: nn.Module, path: str, read: Tensor, output: Tensor, segments: Segments
    ) -> Tensor:
        """m / ‖W + s B A‖ · (W x + s B A x) for sorted tokens, given W x."""
        factors, linear = self.at(path), self.form.linear(base, path)
        if factors is None:
            return output
        dropped = functional.dropout(read, segments.dropout).to(output.dtype)
        low = grouped_linear(dropped, factors.A.to(output.dtype), segments.where)
        delta = grouped_linear(low * self.lora.scale, factors.B.to(output.dtype), segments.where)
        share = factors.share(linear).to(output.dtype)[segments.where.experts()]
        bias = bias_of(linear)
        if bias is None:
            return share * (output + delta)
        return share * (output - bias + delta) + bias


def _by_row(flat: Tensor, rows: int) -> Tensor:
    """(rows x tokens, width) -> (rows, tokens, width)."""
    return flat.reshape(rows, -1, flat.shape[-1])


def _pair(factors: Factors | None, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """A and B in the dtype they are used in."""
    return None if factors is None else (factors.A.to(dtype), factors.B.to(dtype))
