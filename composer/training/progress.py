"""How far a training has come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image

Stage = Literal["prior", "alone", "prepare", "train", "saved"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report. `step` of `total` counts within the stage: prior pictures drawn, steps of what
    each expert draws alone, pictures prepared, steps trained. `loss` is None where there is none:
    outside training, and in a step that was skipped because its loss was not finite."""

    stage: Stage
    step: int
    total: int
    loss: float | None = None
    smoothed_loss: float | None = None
    learning_rate: float | None = None
    skipped: int = 0
    seconds_left: float | None = None
    preview: Image.Image | None = None
    path: Path | None = None
    """The written file, in the last report."""
