"""What every training on pictures is asked to do, whatever it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from composer.errors import ComposerError
from composer.settings import setting
from composer.training.settings import Training

Schedule = Literal["cosine", "constant"]
Optimizer = Literal["adamw", "muon"]
FileType = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class PictureTraining(Training):
    """The settings that all trainings on pictures share; they serialise to JSON.

    Defaults suit a small model and a few dozen pictures. `None` for `resolution` means the model's
    own size, for `min_snr_gamma` and `clip_norm` "do not". Settings that cannot work raise
    ComposerError.
    """

    title: str = setting("", help="A name for people.")
    description: str = setting("", help="A sentence for people.")

    steps: int = setting(500, at_least=1, help="Optimiser steps.")
    batch_size: int = setting(4, at_least=1, help="Pictures at once, for each process.")
    # Muon learns in half the steps what AdamW does, at learning rates of about 5e-3.
    optimizer: Optimizer = setting("adamw", help="What takes the steps.")
    learning_rate: float = setting(
        5e-4, above=0, help="Highest learning rate; muon wants 5e-3 or so."
    )
    schedule: Schedule = setting("cosine", help="How the learning rate goes on.")
    warmup: int = setting(20, at_least=0, help="Steps until the highest learning rate.")
    weight_decay: float = setting(1e-2, at_least=0)
    clip_norm: float | None = setting(1.0, above=0)
    min_snr_gamma: float | None = setting(
        5.0, above=0, option="min_snr", help="Gamma of min-SNR weights; 0 for none."
    )
    noise_offset: float = setting(0.0, at_least=0, help="For darker darks: 0.05, say.")
    caption_dropout: float = setting(0.0, at_least=0, at_most=1, help="Share of captions left out.")
    # Off, because it unlearns left and right.
    flip: bool = setting(False, help="Mirror half of the pictures.")
    resolution: int | None = setting(
        None, at_least=1, help="Side in pixels; the model's own if not given."
    )

    prior_pictures: Path | None = setting(
        None, help="Folder of captioned pictures of what is to stay."
    )
    prior_prompts: tuple[str, ...] = setting(
        (),
        option="prior_prompt",
        help="Let the model draw such pictures first; give it several times.",
    )
    prior_count: int = setting(64, at_least=1, help="How many it draws.")
    prior_share: float = setting(
        0.25, above=0, below=1, hint="0.25, say", help="Their share of each batch."
    )
    prior_weight: float = setting(1.0, at_least=0, help="The weight of their loss.")

    preview_every: int = setting(0, at_least=0, help="A preview every so many steps.")
    preview_prompt: str = setting("", help="What the previews show.")
    save_preview: bool = setting(False, help="Write a picture beside the file.")
    file_type: FileType = setting("float16", help="Of the written numbers.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix != ".safetensors":
            raise ComposerError(
                f"output {self.output.name!r} is no safetensors file: give a name that"
                " ends in .safetensors."
            )

    @property
    def name(self) -> str:
        """The name of what is trained."""
        return self.output.stem

    @property
    def shown_prompt(self) -> str:
        """What previews show; empty for the first caption."""
        return self.preview_prompt
