"""Whether products are made in bfloat16: asked here by everything that trains or loads a model."""

from __future__ import annotations

import time
import warnings
from functools import cache
from typing import Any, cast

import torch
from torch import nn

LONGER = 1.1  # times as long in bfloat16 as in float32, from where on a person is told


@cache
def time_in_bfloat16() -> float:
    """How many times as long as in float32 this processor takes for a step of a convolution's
    training in bfloat16. Measured once, in about a second.

    Processors with AMX take a fifth of the time, others thirty times as long, and their flags do
    not say which.
    """
    conv: Any = cast(Any, nn.Conv2d(128, 128, 3, padding=1)).to(memory_format=torch.channels_last)
    x = torch.randn(4, 128, 32, 32, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last)

    def seconds(reduced: bool) -> float:
        taken: list[float] = []
        begun = time.perf_counter()
        while len(taken) < 2 or time.perf_counter() - begun < 0.4:
            started = time.perf_counter()
            with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                conv(x).float().mean().backward()
            taken.append(time.perf_counter() - started)
        return min(taken)

    return seconds(True) / seconds(False)


def in_bfloat16(precision: str, device: str) -> bool:
    """Whether "float32", "bfloat16" or "auto" means bfloat16 on a device ("cpu", "cuda:0", "mps").

    "auto" does where the device multiplies it faster. By its name it is taken at its word, and a
    person is warned, once, on a processor that takes longer.
    """
    kind = torch.device(device).type
    if precision == "auto":
        if kind == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return kind == "cpu" and time_in_bfloat16() < 1
    if precision == "bfloat16" and kind == "cpu":
        _warn()
    return precision == "bfloat16"


def autocast(precision: str, device: str) -> torch.autocast:
    """The products within it are made as `in_bfloat16` says."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=in_bfloat16(precision, kind))


@cache
def _warn() -> None:
    if (times := time_in_bfloat16()) > LONGER:
        warnings.warn(
            f"This processor takes {times:.3g} times as long in bfloat16 as in float32: auto or "
            "float32 is faster.",
            stacklevel=2,
        )
