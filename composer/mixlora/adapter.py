"""Stands in for a Linear or a Conv2d that adapters change by plain LoRA, each on its own rows."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from composer.mixlora.factors import ConvFactors, Factors
from composer.mixlora.rows import Rows
from composer.mixture.stand_in import StandIn


class AdapterSite(StandIn):
    """y = W x + D(x), W for all rows at once, D of the adapter whose row it is.

    rows: whose each row is. adapters: by name, each one's factors.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, rows: Rows) -> None:
        super().__init__(base)
        self.rows = rows
        self.adapters = nn.ModuleDict()

    def factors(self, name: str) -> Factors | ConvFactors:
        """One adapter's."""
        return cast(Factors | ConvFactors, self.adapters[name])

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (batch, ..., in), or (batch, in, height, width) -> the same as the base."""
        output = bare = cast(Tensor, self.base(hidden))
        plain = self.base
        while isinstance(getattr(plain, "base", None), nn.Module):
            plain = cast(nn.Module, plain.base)  # experts of a mixture may stand on it
        for name, index in self.rows.of(hidden.shape[0], hidden.device).items():
            if name is None or name not in self.adapters:
                continue
            factors = self.factors(name)
            if index is None:
                return output + factors.change(hidden, plain, bare)
            change = factors.change(hidden[index], plain, bare[index])
            output = output.index_add(0, index, change)
        return output
