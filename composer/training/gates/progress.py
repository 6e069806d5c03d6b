"""How far a gate training has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

GateStage = Literal["teach", "start", "train", "saved"]


@dataclass(frozen=True, kw_only=True)
class GateProgress:
    """One report. `step` of `total` counts within the stage: steps of the teachers' samplings,
    experts of the closed-form start, steps of the optimiser.

    loss: of this step; None where there is none or the step was skipped.
    losses: smoothed, by group: an expert's name, "together", "neutral", and "loss" for the whole.
        1 is as far from the teacher as the bare model is.
    entropy: of the gates' shares, 1 even to 0 one expert everywhere.
    path: the written file, in the last report.
    """

    stage: GateStage
    step: int
    total: int
    loss: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict[str, float])
    entropy: float | None = None
    skipped: int = 0
    seconds_left: float | None = None
    preview: Image.Image | None = None
    path: Path | None = None
