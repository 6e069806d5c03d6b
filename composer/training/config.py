"""What a LoRA training is asked to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from composer.errors import ComposerError
from composer.experts.info import ROLES
from composer.mixture.adapter_names import CONVOLUTIONS

Naming = Literal["kohya", "diffusers"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "constant"]
Optimizer = Literal["adamw", "muon"]
FileType = Literal["float16", "float32"]

ATTENTION_AND_FEED_FORWARD = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")

_PATHS = ("output", "pictures", "prior_pictures")
_TUPLES = ("prior_prompts", "targets", "text_targets")
_CHOICES = {
    "naming": get_args(Naming),
    "precision": get_args(Precision),
    "schedule": get_args(Schedule),
    "optimizer": get_args(Optimizer),
    "file_type": get_args(FileType),
    "role": ROLES,
}
_AT_LEAST: dict[str, float] = {
    "rank": 1,
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
_ABOVE_ZERO = ("learning_rate", "text_learning_rate", "alpha", "min_snr_gamma", "clip_norm")


@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """Every setting of one LoRA training; serialises to JSON and is kept in the file it makes.

    Defaults suit a small model and a few dozen pictures. `None` for `alpha` means the rank (scale
    1), for `resolution` the model's own size, for `text_learning_rate` half of `learning_rate`,
    for `min_snr_gamma` and `clip_norm` "do not". Settings that cannot work raise ComposerError.
    """

    output: Path
    """The `.safetensors` file to write; its stem is the LoRA's name."""
    pictures: Path | None = None
    trigger: str = ""
    """The word that calls the LoRA; the caption of every picture that has none."""
    role: str = "other"
    title: str = ""
    description: str = ""

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ATTENTION_AND_FEED_FORWARD
    conv: bool = False
    text_encoder: bool = False
    text_targets: tuple[str, ...] = TEXT_ATTENTION

    steps: int = 500
    batch_size: int = 4
    accumulation: int = 1
    optimizer: Optimizer = "adamw"
    """Muon learns in half the steps what AdamW does, at learning rates of about 5e-3."""
    learning_rate: float = 5e-4
    text_learning_rate: float | None = None
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
    naming: Naming = "kohya"
    file_type: FileType = "float16"

    def __post_init__(self) -> None:
        if self.output.suffix != ".safetensors":
            raise ComposerError(
                f"output {self.output.name!r} is no LoRA file: give a name that ends in"
                " .safetensors."
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ComposerError(
                    f"{name} {getattr(self, name)!r} is unknown: choose one of"
                    f" {', '.join(choices)}."
                )
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ComposerError(f"{name} is {value}: give {least:g} or more.")
        for name in _ABOVE_ZERO:
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
        if not self.targets:
            raise ComposerError(
                "targets is empty: name the layers to train, such as to_q, or leave it out."
            )

    @property
    def name(self) -> str:
        """The LoRA's name: what people write in `<lora:name:weight>`."""
        return self.output.stem

    @property
    def scale(self) -> float:
        """alpha / rank: by what the product of the factors is multiplied."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    @property
    def unet_targets(self) -> tuple[str, ...]:
        return self.targets + CONVOLUTIONS if self.conv else self.targets

    @property
    def checkpoint(self) -> Path:
        """Where the state to resume from is kept; not `.safetensors`, so no library lists it."""
        return self.output.with_suffix(".resume")

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {
            key: str(value) if isinstance(value, Path) else value for key, value in values.items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LoraTraining:
        """The config that `to_json` wrote; raises ComposerError for a setting it does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ComposerError(
                f"Unknown training settings {', '.join(unknown)}: take them out, or update"
                " Composer."
            )
        read = dict(values)
        for name in _PATHS:
            if read.get(name) is not None:
                read[name] = Path(read[name])
        for name in _TUPLES:
            if name in read:
                read[name] = tuple(read[name])
        return cls(**read)
