"""The processes that train together."""

from __future__ import annotations

import os
from typing import Any, cast


def join_processes(device: str = "") -> Any:
    """accelerate's PartialState: this process among those that were launched with it, if any.

    On CPUs accelerate joins processes only when it is set to use no GPU; each would
    train alone otherwise, and write the same file. Joined once, they stay so.
    """
    import torch
    from accelerate import PartialState

    # What `accelerate launch --cpu` sets.
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    wants_cpu = device == "cpu" or asked
    return PartialState(cpu=wants_cpu or not torch.accelerator.is_available())


def any_process(processes: Any, here: bool) -> bool:
    """Whether it is so in any of the processes: all leave then, and none waits for another."""
    if processes.num_processes == 1:
        return here
    import torch
    from accelerate import utils

    count: Any = torch.tensor(float(here), device=processes.device)
    return float(cast(Any, utils).reduce(count, reduction="sum")) > 0


def gathered(processes: Any, own: Any) -> list[Any]:
    """What each process has of its own, by rank, on every process."""
    if processes.num_processes == 1:
        return [own]
    from accelerate import utils

    return list(cast(Any, utils).gather_object([own]))
