"""The host of sparse experts: stands in for an FFN, for one adapter or several at once."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.mixlora.experts import FfnExperts, Mixed
from composer.mixlora.factors import bias_of
from composer.mixlora.ffn import FfnForm
from composer.mixlora.rows import Routed, Rows
from composer.mixture.stand_in import StandIn


class FfnHost(StandIn):
    """An FFN with experts (MixLoRA, section 3.2).

    The FFN's own Linear modules run once for all rows, adapters and experts; each adapter's router
    and experts run on its own rows.

    path: of the FFN in its model. rows: whose each row is. adapters: by name.
    """

    def __init__(self, base: nn.Module, form: FfnForm, path: str, rows: Rows) -> None:
        super().__init__(base)
        self.form, self.path, self.rows = form, path, rows
        self.adapters = nn.ModuleDict()

    def experts(self, name: str) -> FfnExperts | None:
        """One adapter's, if it has any here."""
        return cast(FfnExperts, self.adapters[name]) if name in self.adapters else None

    def forward(self, hidden: Tensor, *inputs: Any, **settings: Any) -> Tensor:
        """hidden: (batch, tokens, width), or (batch, width) -> the same shape."""
        batch = hidden.shape[0]
        groups = self.rows.of(batch, hidden.device)
        if not any(name is not None and name in self.adapters for name in groups):
            return self.base(hidden, *inputs, **settings)
        flat = hidden.ndim == 2
        seen = hidden[:, None] if flat else hidden
        mask = None if flat else self.rows.mask_of(self.path, (batch, seen.shape[1]))
        seen = self._shaken(seen, groups)
        commons = [self.form.linear(self.base, path)(seen) for path in self.form.inputs]
        parts: list[tuple[Mixed, Tensor | None]] = []
        for name, index in groups.items():
            mine = [_rows(common, index) for common in commons]
            experts = None if name is None else self.experts(name)
            if name is None or experts is None:
                bare = functional.dropout(
                    self.form.bind(self.base)(*mine), self.form.inner_dropout(self.base)
                )
                parts.append((Mixed(inner=bare), index))
                continue
            read = _rows(seen, index)
            counted = None if mask is None else _rows(mask, index)
            picks = experts.router(read, counted)
            if self.rows.tape is not None:
                self.rows.tape.append(
                    Routed(
                        host=self.path,
                        adapter=name,
                        logits=picks.logits,
                        chosen=picks.preferred,
                        mask=counted,
                    )
                )
            parts.append((experts(self.base, read, mine, picks), index))
        output = self.form.finish(self.base, self._gather(parts))
        return output[:, 0] if flat else output

    def _shaken(self, hidden: Tensor, groups: dict[str | None, Tensor | None]) -> Tensor:
        """The jitter of training; never in place."""
        for name, index in groups.items():
            experts = None if name is None else self.experts(name)
            if experts is None or experts.router.settings.strategy == "mixlora-switch":
                continue  # the switch router shakes what it sees alone
            shaken = experts.router.shake(_rows(hidden, index))
            if experts.training and experts.router.settings.jitter:
                hidden = shaken if index is None else hidden.index_copy(0, index, shaken)
        return hidden

    def _gather(self, parts: list[tuple[Mixed, Tensor | None]]) -> Tensor:
        """What the adapters made of their rows, through `down` in one call, in the rows' order."""
        inners = [part.inner for part, _ in parts if part.inner is not None]
        downs: list[Tensor] = []
        if inners:
            joint = inners[0] if len(inners) == 1 else torch.cat(inners)
            downs = _split(self.form.run_down(self.base, joint), inners)
        bias = bias_of(self.form.linear(self.base, self.form.down))
        outputs: list[Tensor] = []
        for part, _ in parts:
            if part.inner is None:
                output = cast(Tensor, part.output)
            else:
                output = downs.pop(0)
                if part.output is not None:
                    output = output + part.output.to(output.dtype)
                if part.total is not None and bias is not None:
                    # W_2 has added its bias once, and not once for each choice by its weight
                    output = output + (part.total[..., None] - 1.0).to(output.dtype) * bias
            outputs.append(output)
        if len(outputs) == 1:
            return outputs[0]
        order = torch.cat([cast(Tensor, index) for _, index in parts])
        return torch.cat([one.to(outputs[0].dtype) for one in outputs])[order.argsort()]


def _split(joint: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The rows of each in turn."""
    found: list[Tensor] = []
    begin = 0
    for one in like:
        found.append(joint[begin : begin + one.shape[0]])
        begin += one.shape[0]
    return found


def _rows(tensor: Tensor, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor[index]
