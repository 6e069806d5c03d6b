"""Put the stages together: an ordinary diffusers folder, the CLIP beside it, the oracle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from toybox.denoising import new_scheduler


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """The CLIP's text tower as the pipeline's text encoder, same weights."""
    encoder = CLIPTextModel(cast(Any, clip.config).text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval()


def assemble(
    folder: Path,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    oracle: Path | None = None,
) -> None:
    """Write `folder`: StableDiffusionPipeline in float16 safetensors, `clip/` in it, and the
    oracle's folder copied to `oracle/` if it is given."""
    pipeline = cast(Any, StableDiffusionPipeline)(
        vae=vae,
        text_encoder=text_encoder_of(clip),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    # unless asked otherwise diffusers reads its networks as float32, but transformers as the
    # config says: without this the two would not fit together
    config = folder / "text_encoder" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    cast(Any, clip).half().save_pretrained(folder / "clip")
    cast(Any, tokenizer).save_pretrained(folder / "clip")
    side = int(cast(Any, clip.config).vision_config.image_size)
    size = {"height": side, "width": side}
    middle = [0.5, 0.5, 0.5]  # the towers see -1..1, as the VAE does
    processor: Any = CLIPImageProcessor(
        size=size, crop_size=size, image_mean=middle, image_std=middle, do_center_crop=False
    )
    processor.save_pretrained(folder / "clip")
    if oracle is not None:
        shutil.copytree(oracle, folder / "oracle", dirs_exist_ok=True)
