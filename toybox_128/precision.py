"""Which precision this machine multiplies fastest: measured, not guessed."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, cast

import torch
from torch import nn


@cache
def bfloat16_is_faster() -> bool:
    """Whether a convolution's training step takes less time in bfloat16 than in float32.

    Processors with AMX multiply bfloat16 five times as fast, others thirty times as slowly, and
    their flags do not say which.
    """
    conv: Any = cast(Any, nn.Conv2d(128, 128, 3, padding=1)).to(memory_format=torch.channels_last)
    x = torch.randn(4, 128, 32, 32).to(memory_format=torch.channels_last)

    def seconds(reduced: bool) -> float:
        taken: list[float] = []
        begun = time.perf_counter()
        while len(taken) < 2 or time.perf_counter() - begun < 0.4:
            started = time.perf_counter()
            with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                conv(x).float().mean().backward()
            taken.append(time.perf_counter() - started)
        return min(taken)

    return seconds(True) < seconds(False)


def precision(device: str) -> AbstractContextManager[object]:
    """bfloat16 where the machine multiplies it faster, else float32."""
    if device != "cpu":
        return torch.autocast(device, torch.bfloat16)
    return torch.autocast("cpu", torch.bfloat16) if bfloat16_is_faster() else nullcontext()
