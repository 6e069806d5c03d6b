"""The recipe: every file of the model again, stage by stage, each in a process of its own.

A stage goes on from its checkpoint in the work folder, so a build can be stopped at any moment and
started again. Minutes are budgets, not estimates.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from composer.errors import ComposerError
from toybox.building import in_process

STAGES: tuple[str, ...] = (
    *("vae", "clip", "unet", "decoder", "oracle", "assemble", "measure"),
    *("loras", "mixlora", "language"),
)
"""In order; each needs the ones before it."""

MINUTES: dict[str, float] = {
    "vae": 66,
    "clip": 22,
    "unet": 300,
    "decoder": 40,
    "oracle": 40,
    "language": 12,
}
"""Budgets for one CPU core that multiplies bfloat16 fast."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """What to build, where, on what.

    Attributes:
        work: checkpoints, logs and sample grids.
        out: the model folder to write.
        loras: the folder of the LoRAs.
        scale: every stage's minutes, and the adapters' steps, times this.
        start: a finished model folder whose weights the VAE, CLIP and U-Net begin with.
    """

    work: Path
    out: Path
    loras: Path
    device: str = "cpu"
    scale: float = 1.0
    start: Path | None = None
    seed: int = 0

    def command(self, name: str) -> list[str]:
        """One stage as a command."""
        words = [sys.executable, "-m", "toybox.stage", name]
        for option in ("work", "out", "loras", "device", "scale", "seed"):
            words.append(f"--{option}={getattr(self, option)}")
        return words if self.start is None else [*words, f"--start={self.start}"]


def run(build: Build, names: Sequence[str] = STAGES) -> None:
    """Run the named stages in their order."""
    unknown = set(names) - set(STAGES)
    if unknown:
        raise ComposerError(
            f"The recipe has no stage {', '.join(sorted(unknown))}:"
            f" choose from {', '.join(STAGES)}."
        )
    build.work.mkdir(parents=True, exist_ok=True)
    for name in STAGES:
        if name in names:
            in_process(name, build.command(name), build.work / f"{name}.log")
