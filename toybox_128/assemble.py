"""Stage 5: put the stages together, as an ordinary diffusers folder with `clip/` and `oracle/`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from toybox import assemble as parts
from toybox_128.render import SIZE


def assemble(
    folder: Path,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    oracle: Path | None = None,
) -> None:
    """Write `folder`: StableDiffusionPipeline in float16, `clip/` in it, and the oracle's folder
    copied to `oracle/` where there is one."""
    parts.assemble(folder, vae=vae, unet=unet, clip=clip, tokenizer=tokenizer)
    size = {"height": SIZE, "width": SIZE}
    middle = [0.5, 0.5, 0.5]  # the towers see -1..1, as the VAE does
    processor: Any = CLIPImageProcessor(
        size=size, crop_size=size, image_mean=middle, image_std=middle, do_center_crop=False
    )
    processor.save_pretrained(folder / "clip")
    if oracle is not None:
        shutil.copytree(oracle, folder / "oracle", dirs_exist_ok=True)
