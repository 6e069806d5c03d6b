"""The processes that train together."""

from __future__ import annotations

import os
from typing import Any


def join_processes(device: str = "") -> Any:
    """accelerate's PartialState: this process among those that were launched with it, if any.

    On CPUs accelerate joins processes only when it is told that they are to use no GPU; each would
    train alone otherwise, and write the same file. Joined once, they stay so.
    """
    import torch
    from accelerate import PartialState

    # What `accelerate launch --cpu` says.
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    wants_cpu = device == "cpu" or told
    return PartialState(cpu=wants_cpu or not torch.accelerator.is_available())
