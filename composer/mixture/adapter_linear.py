"""Stands in for a Linear that adapters change by plain LoRA, each on its own rows."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from composer.mixture.factors import Factors
from composer.mixture.rows import Rows
from composer.mixture.stand_in import StandIn


class AdapterLinear(StandIn):
    """y = W x + D(x), W for all rows at once, D of the adapter whose row it is.

    rows: whose each row is. adapters: by name, each one's factors.
    """

    def __init__(self, base: nn.Linear, rows: Rows) -> None:
        super().__init__(base)
        self.rows = rows
        self.adapters = nn.ModuleDict()

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (batch, ..., in) -> (batch, ..., out)."""
        base = cast(nn.Linear, self.base)
        output = bare = base(hidden)
        for name, index in self.rows.of(hidden.shape[0], hidden.device).items():
            if name is None or name not in self.adapters:
                continue
            factors = cast(Factors, self.adapters[name])
            if index is None:
                return output + factors.change(hidden, base, bare)
            change = factors.change(hidden[index], base, bare[index])
            output = output.index_add(0, index, change)
        return output
