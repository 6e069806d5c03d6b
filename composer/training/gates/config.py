"""What a gate training is asked to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from composer.errors import ComposerError
from composer.mixture import GRANULARITIES, GateSettings, Granularity
from composer.training.picture_config import Precision

Objective = Literal["judged", "distill", "clip"]
Teacher = Literal["regions", "changes"]
Company = Literal["fitting", "everybody", "nobody"]
Start = Literal["sum", "solved", "even"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "granularity": GRANULARITIES,
    "objective": get_args(Objective),
    "teacher": get_args(Teacher),
    "company": get_args(Company),
    "start": get_args(Start),
    "precision": get_args(Precision),
}
_AT_LEAST: dict[str, float] = {
    "steps": 0,
    "batch_size": 1,
    "accumulation": 1,
    "trajectories": 1,
    "teacher_steps": 1,
    "cfg_scale": 1,
    "warmup": 0,
    "balance": 0,
    "router_balance": 0,
    "keep": 0,
    "compose": 0,
    "rest": 0,
    "familiar": 0,
    "near": 0,
    "checkpoint_every": 0,
    "preview_every": 0,
    "seed": 0,
}
_ABOVE_ZERO = ("learning_rate", "clip_norm")

RECOMMENDED = GateSettings(
    input="auto", reduce="mean", activation="free", normalise="l2", time=True, bias=True
)
"""The gate to begin with: for each picture and step any weights, whatever they come to, and in
places of their own for figures that stand side by side."""


@dataclass(frozen=True, kw_only=True)
class GateTraining:
    """Every setting of one gate training; serialises to JSON and is kept in the file it makes.

    output: the `.safetensors` file to write.
    prompts: that name every expert; what the gates are for.
    alone: for each expert by name, prompts that name it and no other.
    neutral: prompts that name none.
    gate: how the gates of the U-Net look and speak; those of a text encoder know no time.
    depth: gates stand only in the units of the U-Net from this depth on, 0 to 1; before it every
        expert speaks with weight 1. The last unit always has a gate.
    text_encoder: whether the text encoder's sites get gates too; without, experts speak there with
        weight 1 each.
    objective: "judged", each expert must recognise itself in the composed picture; "distill",
        follow a teacher that the experts make up (neither needs photographs, CLIP or decoding); or
        "clip" (the paper's).
    teacher: for the objective distill, who teaches composed prompts: "regions", the same experts,
        each where its own words act; or "changes", the changes that the experts make alone to the
        prediction, added up.
    clip: for the objective clip, a CLIP of transformers by folder or hub name; empty takes the
        model's own.
    keep, compose, rest: how much the three terms of the distillation count: on an expert's own
        prompts stay with it alone, on composed prompts follow the composed teacher, on neutral
        prompts stay with the base.
    familiar: for the objective judged, how much it counts that at each place of the picture some
        of the judges know what they see. Weights that are held near the sum need it less.
    near: for the objective judged, how much it counts that weights stay near 1, the plain sum,
        which keeps some of what judges do not see. 0 for a softmax, whose weights cannot be 1.
    company: for the objective judged, beside whom each expert recognises itself in composed
        pictures: "fitting", all others, but for a figure (a character, clothing, an object) no
        other figure; "everybody", all others; "nobody", the expert alone against the bare model.
    balance: alpha of the gating balance loss (equation 16).
    router_balance: the coefficient of MixLoRA's balance loss (its equations 8 and 9), which evens
        out how often each expert is chosen by gates with `top_k`; its authors take 1e-2.
    start: where gates begin: "sum", every weight is 1; "solved", the closed-form solution; "even",
        equal shares of 1. All but the last need gates with bias.
    trajectories: samplings that each teacher makes to learn from.
    teacher_steps: of each sampling, and of those that gates are judged by.
    steps: of the optimiser; 0 leaves the gates at their start.
    preview_prompt: what the pictures on the way are of; empty takes the first of the prompts, or of
        those that name one expert, or none.
    precision: "float32", or "bfloat16" for the products of the model that is trained on.
    """

    output: Path
    prompts: tuple[str, ...] = ()
    alone: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    neutral: tuple[str, ...] = ()

    granularity: Granularity = "block"
    gate: GateSettings = RECOMMENDED
    depth: float = 0.0
    text_encoder: bool = False
    objective: Objective = "judged"
    teacher: Teacher = "regions"
    clip: str = ""
    keep: float = 0.0
    compose: float = 1.0
    rest: float = 0.0
    familiar: float = 0.0
    near: float = 0.3
    company: Company = "fitting"
    balance: float = 0.0
    router_balance: float = 0.0
    start: Start = "sum"

    trajectories: int = 40
    teacher_steps: int = 12
    cfg_scale: float = 3.0

    steps: int = 120
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-2
    warmup: int = 10
    clip_norm: float = 1.0
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
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ComposerError(f"{name} is {value}: give a number above 0.")
        if not self.keep + self.compose + self.rest > 0:
            raise ComposerError("keep, compose and rest are all 0: there is nothing to learn.")
        if self.router_balance and not (
            self.gate.top_k and self.gate.activation in ("softmax", "scaled")
        ):
            raise ComposerError(
                "router_balance is for gates that choose by their shares: give top_k, and the "
                "activation softmax or scaled; or set it to 0."
            )
        if self.start != "even" and not self.gate.bias:
            raise ComposerError(
                f"The start {self.start!r} needs gates with a bias: give them one, or start even."
            )

    @property
    def checkpoint(self) -> Path:
        """Where the state to resume from is kept."""
        return self.output.with_suffix(".resume")

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
        read["gate"] = GateSettings.from_json(read["gate"])
        read["alone"] = {name: tuple(prompts) for name, prompts in read["alone"].items()}
        for name in ("prompts", "neutral"):
            read[name] = tuple(read[name])
        return cls(**read)
