"""How far a training is, at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from composer.studio.training_request import TrainingRequest

State = Literal["waiting", "running", "stopping", "stopped", "failed", "finished"]
Stage = Literal["prepare", "alone", "train"]

MOST_POINTS = 1000  # of a curve; of a longer one every second step is kept


@dataclass(frozen=True, kw_only=True)
class Point:
    """One step of the optimiser: the smoothed losses by group, and the gates' entropy.

    losses: "loss" for the whole, and its parts: by LoRA's name what it misses of itself, or "CLIP".
    entropy: 1 where all LoRAs have equal shares, 0 where one has everything.
    """

    step: int
    losses: Mapping[str, float] = field(hash=False)
    entropy: float | None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture with the gates after a step, always of the same prompt and from the same seed."""

    step: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training as it stands.

    step, total: within the stage: of the samplings of the LoRAs alone, of the optimiser.
    skipped: steps without a finite loss.
    message: why it failed, or what else is to be known.
    path: of the finished gate file.
    ahead: how many trainings come before it, while it waits.
    gives_way: it pauses for a picture just now.
    """

    request: TrainingRequest
    state: State = "waiting"
    stage: Stage = "prepare"
    step: int = 0
    total: int = 0
    history: tuple[Point, ...] = ()
    previews: tuple[Preview, ...] = ()
    seconds_left: float | None = None
    skipped: int = 0
    message: str = ""
    path: Path | None = None
    created: float = 0.0
    ahead: int = 0
    gives_way: bool = False

    @property
    def name(self) -> str:
        """Of the training and of its result."""
        return self.request.name

    @property
    def active(self) -> bool:
        """Whether it runs or waits to."""
        return self.state in ("waiting", "running", "stopping")

    @property
    def trained(self) -> int:
        """Steps of the optimiser that were made."""
        return self.history[-1].step if self.history else 0

    def with_point(self, point: Point) -> tuple[Point, ...]:
        """The history with one more step; those a resumed training makes again are replaced."""
        kept = self.history
        if kept and kept[-1].step >= point.step:
            kept = tuple(old for old in kept if old.step < point.step)
        if len(kept) >= MOST_POINTS:
            kept = kept[::2]
        return (*kept, point)
