"""The trained low-rank factors at one Linear (of all experts of an FFN, stacked, or of one LoRA) or
Conv2d."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.errors import ComposerError
from composer.mixlora.settings import LoraSettings


class Factors(nn.Module):
    """D_e(x) = s B_e A_e dropout(x) for each of some experts.

    A: (experts, rank, in), kaiming-uniform at the start; B: (experts, out, rank), zero.
    magnitude: (experts, out), with DoRA alone: at the start the norm of each row of the weight.

    They are float32 until the model is cast, and their products are in the base's dtype.
    """

    def __init__(self, settings: LoraSettings, base: nn.Linear, experts: int = 1) -> None:
        super().__init__()
        self.settings = settings
        device = base.weight.device
        inputs, outputs, rank = base.in_features, base.out_features, settings.rank
        bound = 1.0 / math.sqrt(inputs)
        a = torch.empty(experts, rank, inputs).uniform_(-bound, bound)  # on the CPU: one seed, one
        self.A = nn.Parameter(a.to(device))  # start on all devices
        self.B = nn.Parameter(torch.zeros(experts, outputs, rank, device=device))
        self.magnitude: nn.Parameter | None = None
        if settings.dora:
            weight = _dense(base)
            rows = weight.float().square().sum(dim=1).sqrt()
            self.magnitude = nn.Parameter(rows.expand(experts, outputs).clone())

    @property
    def dropout(self) -> float:
        """How much is dropped now: nothing outside of training."""
        return self.settings.dropout if self.training else 0.0

    def low(self, hidden: Tensor) -> Tensor:
        """A drop(x) of the first expert, (..., rank), in the input's dtype."""
        dropped = functional.dropout(hidden, self.dropout) if self.dropout else hidden
        return functional.linear(dropped, self.A[0].to(hidden.dtype))

    def delta(self, hidden: Tensor) -> Tensor:
        """D(x) of the first expert, (..., out), in the input's dtype."""
        return functional.linear(self.low(hidden), self.B[0].to(hidden.dtype) * self.settings.scale)

    def change(self, hidden: Tensor, base: nn.Module, output: Tensor) -> Tensor:
        """What the first expert adds to `output`, the base's own: D(x), and with DoRA also what the
        new magnitude changes."""
        linear = cast(nn.Linear, base)
        delta = self.delta(hidden.to(output.dtype))
        if self.magnitude is None:
            return delta
        share = self.share(linear)[0].to(output.dtype)  # (out,)
        bias = bias_of(linear)
        bare = output if bias is None else output - bias
        return (share - 1.0) * bare + share * delta

    def share(self, base: nn.Linear) -> Tensor:
        """DoRA's m / ‖W + s B A‖, (experts, out), with a gradient for m alone."""
        assert self.magnitude is not None
        with torch.no_grad():
            weight, a, b = _dense(base).float(), self.A.float(), self.B.float()
            scale = self.settings.scale
            experts, rank, inputs = a.shape
            # ‖W + s B A‖² = ‖W‖² + 2 s (W Aᵀ · B) + s² (B (A Aᵀ) · B), row by row, without B A
            cross = (weight @ a.reshape(-1, inputs).mT).reshape(-1, experts, rank).transpose(0, 1)
            squares = weight.square().sum(dim=1) + 2.0 * scale * (cross * b).sum(dim=-1)
            squares = squares + scale**2 * ((b @ (a @ a.mT)) * b).sum(dim=-1)
            norms = squares.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        return self.magnitude / norms


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

    def change(self, hidden: Tensor, base: nn.Module, output: Tensor) -> Tensor:
        """What is added to `output`, the base's own, in its dtype."""
        hidden = hidden.to(output.dtype)
        if self.training and self.settings.dropout:
            hidden = functional.dropout(hidden, self.settings.dropout)
        a, b = self.A[0].to(hidden.dtype), self.B[0].to(hidden.dtype)
        # the base's own stride, padding (and its mode) and dilation
        low = cast(nn.Conv2d, base)._conv_forward(hidden, a, None)  # pyright: ignore[reportPrivateUsage]
        return functional.conv2d(low, (b * self.settings.scale)[..., None, None])


def bias_of(linear: nn.Linear) -> Tensor | None:
    """A Linear's bias, if it has one."""
    return cast("Tensor | None", linear.bias)


def _dense(base: nn.Linear) -> Tensor:
    if not base.weight.is_floating_point():
        raise ComposerError(
            "DoRA needs the norms of the model's weights, and these are quantised: load the model "
            "in 16 or 32 bits, or train without DoRA."
        )
    return base.weight.detach()
