"""What a gate training is asked to do, and how it reports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from composer.errors import ComposerError
from composer.mixture import GRANULARITIES, GateSettings, Granularity
from composer.training.picture_config import Precision

Input = Literal["auto", "hidden", "placed", "experts"]
Company = Literal["fitting", "nobody"]
GateStage = Literal["alone", "train", "saved"]

RECOMMENDED = GateSettings(activation="free", time=True, bias=True)
"""Any weights, for each picture and step; where figures stand side by side, its input is placed."""
PAPER = GateSettings(reduce="flatten", activation="softmax")
"""MoLE's gate (arXiv 2404.13628, equations 9 to 11)."""
OF_ONE = GateSettings(activation="softmax")
"""For a single expert: the only share of a softmax is exactly 1, so there is nothing to learn."""

FIGURES = ("character", "clothing", "object")
"""Roles that draw a figure, or something on one."""

WARMUP = 10
"""Steps until the highest learning rate."""
CLIP_NORM = 1.0
"""The most that the norm of all gradients may be."""
NEAR = 0.3
"""How much it counts that the judged gates' weights stay near 1, the plain sum."""
BALANCE = 0.5
"""Alpha of the paper's gating balance loss (its equation 16)."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "granularity": GRANULARITIES,
    "input": get_args(Input),
    "company": get_args(Company),
    "precision": get_args(Precision),
}
_AT_LEAST: dict[str, float] = {
    "steps": 0,
    "batch_size": 1,
    "accumulation": 1,
    "checkpoint_every": 0,
    "preview_every": 0,
    "seed": 0,
}


@dataclass(frozen=True, kw_only=True)
class GateTraining:
    """Every setting of one gate training; serialises to JSON and is kept in the file it makes.

    output: the `.safetensors` file to write.
    prompts: that name every expert; what the gates are for.
    alone: for each expert by name, prompts that name it and no other.
    granularity: what one gate governs.
    input: what the gates look at: the unit's input ("hidden"); that, with weights that count where
        each expert's words act ("placed"); the experts' outputs ("experts", with `paper` alone: its
        equations 7 and 8). "auto" is hidden, or placed where two experts or more draw figures.
    depth: gates stand only in the units of the U-Net from this depth on, 0 to 1; before it every
        expert has weight 1. The last unit always has a gate.
    company: beside whom each expert recognises itself in composed pictures: "fitting", all others,
        but for a figure (a character, clothing, an object) no other figure; "nobody", the expert
        alone against the bare model.
    paper: MoLE as published in place of the judges: CLIP's loss and the balance loss, softmax of
        all that a unit sees, gates in the text encoder too, beginning even.
    clip: with `paper`, a CLIP of transformers by folder or hub name; empty is the model's own.
    steps: of the optimiser; 0 leaves the gates at their start.
    preview_prompt: what the pictures on the way are of; empty is the first of the prompts.
    precision: "float32", or "bfloat16" for the products of the model that is trained on.
    """

    output: Path
    prompts: tuple[str, ...] = ()
    alone: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    granularity: Granularity = "block"
    input: Input = "auto"
    depth: float = 0.0
    company: Company = "fitting"
    paper: bool = False
    clip: str = ""

    steps: int = 120
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-2
    seed: int = 0
    gradient_checkpointing: bool = False
    precision: Precision = "float32"

    preview_every: int = 0
    preview_prompt: str = ""
    checkpoint_every: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix != ".safetensors":
            raise ComposerError(
                f"output {self.output.name!r} is no gate file: give a name that ends in"
                " .safetensors."
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ComposerError(
                    f"{name} {getattr(self, name)!r} is unknown: choose one of"
                    f" {', '.join(choices)}."
                )
        if not 0 <= self.depth < 1:
            raise ComposerError(f"depth is {self.depth}: give 0 or more, and less than 1.")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ComposerError(f"{name} is {value}: give {least:g} or more.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ComposerError(f"learning_rate is {self.learning_rate}: give a number above 0.")
        self._check_together()

    def _check_together(self) -> None:
        """Refuse settings that would be ignored beside others."""
        if self.paper and self.company != "fitting":
            raise ComposerError(
                f"company {self.company!r} is for LoRAs as judges, and with paper CLIP judges: "
                "leave one of them out."
            )
        if self.paper and self.input == "placed":
            raise ComposerError(
                "The paper's gates know no places: with paper choose the input hidden or experts."
            )
        if not self.paper and self.input == "experts":
            raise ComposerError(
                "The input experts is the paper's: give paper too, or choose the input hidden or "
                "placed."
            )
        if self.clip and not self.paper:
            raise ComposerError(
                f"clip {self.clip!r} is asked with paper alone: give paper too, or leave it out."
            )
        if self.preview_prompt and not self.preview_every:
            raise ComposerError(
                "There is a preview_prompt, and no preview is asked for: give preview_every too, "
                "or leave it out."
            )

    @property
    def checkpoint(self) -> Path:
        """Where the state to resume from is kept."""
        return self.output.with_suffix(".resume")

    def gate(self, roles: Sequence[str]) -> GateSettings:
        """The gates of the U-Net over experts of these roles."""
        if len(roles) == 1:
            return OF_ONE
        chosen = self.input
        if self.paper:
            return dataclasses.replace(PAPER, input="experts" if chosen == "experts" else "hidden")
        if chosen == "auto":
            chosen = "placed" if sum(role in FIGURES for role in roles) > 1 else "hidden"
        return dataclasses.replace(RECOMMENDED, input=chosen)

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes the same."""
        values = dataclasses.asdict(self)
        values["output"] = str(self.output)
        values["alone"] = {name: list(prompts) for name, prompts in self.alone.items()}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GateTraining:
        """What `to_json` gave; raises ComposerError for a setting it does not know."""
        known = {found.name for found in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ComposerError(
                f"Unknown training settings {', '.join(unknown)}: take them out, or update"
                " Composer."
            )
        read = dict(values)
        read["output"] = Path(read["output"])
        read["prompts"] = tuple(read["prompts"])
        read["alone"] = {name: tuple(prompts) for name, prompts in read["alone"].items()}
        return cls(**read)


@dataclass(frozen=True, kw_only=True)
class GateProgress:
    """One report. `step` of `total` counts within the stage: steps of the samplings that each
    expert makes alone, steps of the optimiser.

    loss: of this step; None where there is none or the step was skipped.
    losses: smoothed: "loss" for the whole, and by expert's name what it misses of itself; for the
        paper's objective "CLIP".
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
