"""What benchmarks of pictures are tried with: a tiny model that is judged, and their options."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from toybox.oracle import Oracle, OracleNet


def judged_model(tiny: Path, folder: Path) -> Path:
    """A copy of the model in `folder`, with an oracle that was never trained."""
    shutil.copytree(tiny, folder)
    torch.manual_seed(0)
    Oracle(OracleNet()).save(folder / "oracle")
    return folder


def options_of(model: Path, loras: Path, folder: Path, *, steps: int = 1) -> list[str]:
    """The options of a benchmark that keeps all that it makes in `folder`."""
    folders = {"--model": model, "--loras": loras}
    folders |= {f"--{name}": folder / name for name in ("cache", "results", "images")}
    return ["--steps", str(steps), *(str(word) for pair in folders.items() for word in pair)]
