"""What a figure was measured on: the machine, in words, and the versions of what ran."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from composer import __version__

LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def describe_machine() -> dict[str, object]:
    """Processor, cores to be used, memory, GPU; nothing that tells whose machine it is."""
    return {
        "cpu": _processor(),
        "cores": usable_cores(),
        "ram_gb": _memory_gb(),
        "gpu": _gpu(),
        "system": platform.system(),
    }


def describe_versions() -> dict[str, str]:
    """Python, Composer and the libraries that decide the figures."""
    found = {"python": platform.python_version(), "composer": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_commit(folder: Path) -> str:
    """The commit checked out at `folder`, with "+" where tracked code was changed since.

    Results and documents do not count as changes: a benchmark writes them itself.
    """
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    changed = _git(
        folder, "status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results", ":!docs"
    )
    return f"{commit}+" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # there is no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> int | None:
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    if "SC_PHYS_PAGES" not in names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
