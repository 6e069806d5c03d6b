"""`composer train-lora`: pictures in, a LoRA file out."""

from __future__ import annotations

from typing import Any

from composer.commands import _options as options
from composer.commands._settings import with_settings
from composer.commands._watching import follow_pictures
from composer.training.lora.settings import LoraTraining


@with_settings(
    LoraTraining, arguments=("pictures", "output"), checkpoint_every=options.CHECKPOINT_EVERY
)
def train_lora(
    model: options.Model = options.TOYBOX,
    vae: options.Vae = None,
    device: options.ChosenDevice = "",
    **settings: Any,
) -> None:
    """Train a LoRA on a folder of pictures; several processes: `torchrun -m composer …`."""
    from composer.training.lora.train import train_lora as train

    follow_pictures(train, LoraTraining(**settings), model=model, vae=vae, device=device)
