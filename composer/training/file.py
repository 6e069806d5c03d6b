"""The trained factors become a LoRA file, with a picture beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime

import torch
from PIL import Image

from composer.experts.info import LoraInfo
from composer.experts.low_rank import LowRank
from composer.experts.write import write_lora
from composer.files import write_atomically
from composer.training.config import LoraTraining
from composer.training.metadata import training_metadata
from composer.training.picture_config import PictureTraining
from composer.training.trainer import Trainer

FILE_TYPES = {"float16": torch.float16, "float32": torch.float32}


def write_trained(
    trainer: Trainer, factors: Mapping[str, LowRank], config: LoraTraining, started: datetime
) -> None:
    """Write what was learned so far to `config.output`, whole or not at all."""
    model = trainer.model
    write_lora(
        config.output,
        factors,
        LoraInfo(
            trigger=config.trigger,
            role=config.role,
            base=model.name,
            rank=config.rank,
            title=config.title,
            description=config.description,
            extra=training_metadata(trainer, config, started),
        ),
        naming=config.naming,
        dtype=FILE_TYPES[config.file_type],
    )


def write_preview(config: PictureTraining, preview: Image.Image) -> None:
    """Write the picture that libraries show for the LoRA: `<name>.png` beside it."""
    buffer = io.BytesIO()
    preview.save(buffer, "PNG")
    write_atomically(config.output.with_suffix(".png"), buffer.getvalue())
