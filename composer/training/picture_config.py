"""What every training on pictures is asked to do, whatever it trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

from composer.errors import ComposerError

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "constant"]
Optimizer = Literal["adamw", "muon"]
FileType = Literal["float16", "float32"]

Kind = TypeVar("Kind", bound="PictureTraining")


@dataclass(frozen=True, kw_only=True)
class PictureTraining:
    """The settings that all trainings on pictures share; they serialise to JSON.

    Defaults suit a small model and a few dozen pictures. `None` for `resolution` means the model's
    own size, for `min_snr_gamma` and `clip_norm` "do not". Settings that cannot work raise
    ComposerError.
    """

    paths: ClassVar[tuple[str, ...]] = ("output", "prior_pictures")
    tuples: ClassVar[tuple[str, ...]] = ("prior_prompts",)
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "precision": get_args(Precision),
        "schedule": get_args(Schedule),
        "optimizer": get_args(Optimizer),
        "file_type": get_args(FileType),
    }
    at_least: ClassVar[Mapping[str, float]] = {
        "steps": 1,
        "batch_size": 1,
        "accumulation": 1,
        "warmup": 0,
        "prior_weight": 0,
        "prior_count": 1,
        "noise_offset": 0,
        "checkpoint_every": 0,
        "preview_every": 0,
        "seed": 0,
        "weight_decay": 0,
    }
    above_zero: ClassVar[tuple[str, ...]] = ("learning_rate", "min_snr_gamma", "clip_norm")

    output: Path
    """The `.safetensors` file to write; its stem is the name of what is trained."""
    title: str = ""
    description: str = ""

    steps: int = 500
    batch_size: int = 4
    accumulation: int = 1
    optimizer: Optimizer = "adamw"
    """Muon learns in half the steps what AdamW does, at learning rates of about 5e-3."""
    learning_rate: float = 5e-4
    schedule: Schedule = "cosine"
    warmup: int = 20
    weight_decay: float = 1e-2
    clip_norm: float | None = 1.0
    min_snr_gamma: float | None = 5.0
    noise_offset: float = 0.0
    caption_dropout: float = 0.0
    flip: bool = False
    """Mirror half of the pictures. Off, because it unlearns left and right."""
    resolution: int | None = None
    seed: int = 0
    precision: Precision = "float32"
    gradient_checkpointing: bool = False

    prior_pictures: Path | None = None
    prior_prompts: tuple[str, ...] = ()
    """Prompts from which the model itself draws `prior_count` prior pictures before training."""
    prior_count: int = 64
    prior_share: float = 0.25
    """How much of each batch is prior pictures, when there are any."""
    prior_weight: float = 1.0

    preview_every: int = 0
    preview_prompt: str = ""
    save_preview: bool = False
    checkpoint_every: int = 0
    resume: bool = False
    file_type: FileType = "float16"

    def __post_init__(self) -> None:
        if self.output.suffix != ".safetensors":
            raise ComposerError(
                f"output {self.output.name!r} is no safetensors file: give a name that"
                " ends in .safetensors."
            )
        for name, choices in self.choices.items():
            if getattr(self, name) not in choices:
                raise ComposerError(
                    f"{name} {getattr(self, name)!r} is unknown: choose one of"
                    f" {', '.join(choices)}."
                )
        for name, least in self.at_least.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ComposerError(f"{name} is {value}: give {least:g} or more.")
        for name in self.above_zero:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ComposerError(f"{name} is {value}: give a number above 0.")
        if not 0 <= self.caption_dropout <= 1:
            raise ComposerError(
                f"caption_dropout is {self.caption_dropout}: give a share from 0 to 1."
            )
        if not 0 < self.prior_share < 1:
            raise ComposerError(
                f"prior_share is {self.prior_share}: give a share between 0 and 1, such as 0.25."
            )

    @property
    def name(self) -> str:
        """The name of what is trained."""
        return self.output.stem

    @property
    def shown_prompt(self) -> str:
        """What previews show; empty for the first caption."""
        return self.preview_prompt

    @property
    def checkpoint(self) -> Path:
        """Where the state to resume from is kept; not `.safetensors`, so no library lists it."""
        return self.output.with_suffix(".resume")

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {key: plain(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls: type[Kind], values: Mapping[str, Any]) -> Kind:
        """The config that `to_json` wrote; raises ComposerError for a setting it does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ComposerError(
                f"Unknown training settings {', '.join(unknown)}: take them out, or update"
                " Composer."
            )
        return cls(**cls.read_values(dict(values)))

    @classmethod
    def read_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Plain values as the fields' own types."""
        for name in cls.paths:
            if values.get(name) is not None:
                values[name] = Path(values[name])
        for name in cls.tuples:
            if name in values:
                values[name] = tuple(values[name])
        return values


def plain(value: Any) -> Any:
    """A value as JSON has it: paths become text, all the way down."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return value
