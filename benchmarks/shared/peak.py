"""How much memory this process uses, now and at its peak."""

from __future__ import annotations

from pathlib import Path

import torch


def memory(what: str, device: str) -> float:
    """MB: "VmRSS" now, "VmHWM" at the peak."""
    if device != "cpu":
        used = torch.cuda.max_memory_allocated if what == "VmHWM" else torch.cuda.memory_allocated
        return used() / 1e6
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("memory is measured on Linux alone")


def forget_peak(device: str) -> None:
    """Let the peak begin again."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
