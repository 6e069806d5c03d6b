"""What a LoRA training is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from composer.errors import ComposerError
from composer.experts.info import Role
from composer.mixlora.names import CONVOLUTIONS
from composer.settings import setting
from composer.training.picture_settings import PictureTraining

Naming = Literal["kohya", "diffusers"]

ATTENTION_AND_FEED_FORWARD = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, kw_only=True)
class LoraTraining(PictureTraining):
    """Every setting of one LoRA training; serialises to JSON and is kept in the file it makes.

    `None` for `alpha` means the rank (scale 1), for `text_learning_rate` half of `learning_rate`.
    The name of `output` is the LoRA's: what people write in `<lora:name:weight>`.
    """

    pictures: Path | None = setting(
        None, help="Folder of pictures, with name.txt beside name.png or metadata.jsonl."
    )
    trigger: str = setting(
        "", help="The word that calls the LoRA; caption of pictures without one."
    )
    role: Role = setting("other", help="What the LoRA adds to a picture.")

    rank: int = setting(8, at_least=1, help="Width of the factors.")
    alpha: float | None = setting(None, above=0, help="Strength; the rank if not given.")
    targets: tuple[str, ...] = setting(
        ATTENTION_AND_FEED_FORWARD,
        option="target",
        help="Layers to train, by the end of their names; give it several times.",
    )
    conv: bool = setting(False, help="Train the convolutions too.")
    text_encoder: bool = setting(False, help="Train the text encoder too.")
    text_targets: tuple[str, ...] = TEXT_ATTENTION
    text_learning_rate: float | None = setting(
        None, above=0, help="That of the text encoder; half of the other if not given."
    )
    preview_prompt: str = setting("", help="What the previews show; the trigger if not given.")
    naming: Naming = setting("kohya", help="Whose names the file's tensors have.")

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
