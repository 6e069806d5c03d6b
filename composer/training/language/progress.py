"""How far the training of a language adapter has come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Stage = Literal["prepare", "train", "saved"]


@dataclass(frozen=True, kw_only=True)
class LanguageProgress:
    """One report of one adapter. `loss` is the mean cross-entropy of an answer's token in nats;
    None where there is none: outside training, and in a step that was skipped because its loss was
    not finite."""

    stage: Stage
    name: str
    step: int
    total: int
    loss: float | None = None
    smoothed_loss: float | None = None
    router_loss: float | None = None
    """The balance loss with its coefficient, as it was added."""
    load: tuple[float, ...] = ()
    """What part of all choices went to each expert, over all layers; sums to 1."""
    eval_loss: float | None = None
    """On the data kept for it, in the steps in which it was measured."""
    learning_rate: float | None = None
    skipped: int = 0
    cut: int = 0
    """Requests that lost their beginning, for the window was too short."""
    seconds_left: float | None = None
    path: Path | None = None
    """The written folder, in the last report."""
