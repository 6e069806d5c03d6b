"""What a LoRA training is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from composer.errors import ComposerError
from composer.experts.info import ROLES
from composer.mixture.adapter_names import CONVOLUTIONS
from composer.training.picture_config import PictureTraining

Naming = Literal["kohya", "diffusers"]

ATTENTION_AND_FEED_FORWARD = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, kw_only=True)
class LoraTraining(PictureTraining):
    """Every setting of one LoRA training; serialises to JSON and is kept in the file it makes.

    `None` for `alpha` means the rank (scale 1), for `text_learning_rate` half of `learning_rate`.
    The name of `output` is the LoRA's: what people write in `<lora:name:weight>`.
    """

    paths: ClassVar[tuple[str, ...]] = (*PictureTraining.paths, "pictures")
    tuples: ClassVar[tuple[str, ...]] = (*PictureTraining.tuples, "targets", "text_targets")
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **PictureTraining.choices,
        "naming": get_args(Naming),
        "role": ROLES,
    }
    at_least: ClassVar[Mapping[str, float]] = {**PictureTraining.at_least, "rank": 1}
    above_zero: ClassVar[tuple[str, ...]] = (
        *PictureTraining.above_zero,
        "text_learning_rate",
        "alpha",
    )

    pictures: Path | None = None
    trigger: str = ""
    """The word that calls the LoRA; the caption of every picture that has none."""
    role: str = "other"

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ATTENTION_AND_FEED_FORWARD
    conv: bool = False
    text_encoder: bool = False
    text_targets: tuple[str, ...] = TEXT_ATTENTION
    text_learning_rate: float | None = None
    naming: Naming = "kohya"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            raise ComposerError(
                "targets is empty: name the layers to train, such as to_q, or leave it out."
            )

    @property
    def scale(self) -> float:
        """alpha / rank: by what the product of the factors is multiplied."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    @property
    def shown_prompt(self) -> str:
        return self.preview_prompt or self.trigger

    @property
    def unet_targets(self) -> tuple[str, ...]:
        return self.targets + CONVOLUTIONS if self.conv else self.targets
