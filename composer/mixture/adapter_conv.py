"""Stands in for a Conv2d that adapters change by plain LoRA, each on its own rows."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.mixture.lora_settings import LoraSettings
from composer.mixture.rows import Rows
from composer.mixture.stand_in import StandIn


class ConvFactors(nn.Module):
    """D(x) = s B (A * dropout(x)): A has the convolution's own kernel, B is 1 x 1.

    A: (1, rank, in, kh, kw), kaiming-uniform at the start; B: (1, out, rank), zero. The first axis
    is that of `Factors`.
    """

    magnitude = None

    def __init__(self, settings: LoraSettings, base: nn.Conv2d) -> None:
        super().__init__()
        self.settings = settings
        outputs, *kernel = base.weight.shape
        bound = 1.0 / math.sqrt(math.prod(kernel))
        a = torch.empty(1, settings.rank, *kernel).uniform_(-bound, bound)  # on the CPU: one seed,
        self.A = nn.Parameter(a.to(base.weight.device))  # one start on all devices
        self.B = nn.Parameter(torch.zeros(1, outputs, settings.rank, device=base.weight.device))

    def change(self, hidden: Tensor, base: nn.Conv2d) -> Tensor:
        """(rows, in, h, w) -> what is added to the base's output, in the input's dtype."""
        if self.training and self.settings.dropout:
            hidden = functional.dropout(hidden, self.settings.dropout)
        # the base's own stride, padding (and its mode) and dilation
        a, b = self.A[0].to(hidden.dtype), self.B[0].to(hidden.dtype)
        low = base._conv_forward(hidden, a, None)  # pyright: ignore[reportPrivateUsage]
        return functional.conv2d(low, (b * self.settings.scale)[..., None, None])


class AdapterConv2d(StandIn):
    """y = W * x + D(x), W for all rows at once, D of the adapter whose row it is.

    rows: whose each row is. adapters: by name, each one's factors.
    """

    def __init__(self, base: nn.Conv2d, rows: Rows) -> None:
        super().__init__(base)
        self.rows = rows
        self.adapters = nn.ModuleDict()

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (batch, in, height, width) -> the same as the base."""
        output = cast(Tensor, self.base(hidden))
        plain = self.base
        while isinstance(getattr(plain, "base", None), nn.Module):
            plain = cast(nn.Module, plain.base)  # experts of a mixture may stand on it
        conv = cast(nn.Conv2d, plain)
        for name, index in self.rows.of(hidden.shape[0], hidden.device).items():
            if name is None or name not in self.adapters:
                continue
            factors = cast(ConvFactors, self.adapters[name])
            if index is None:
                return output + factors.change(hidden.to(output.dtype), conv)
            change = factors.change(hidden[index].to(output.dtype), conv)
            output = output.index_add(0, index, change)
        return output
