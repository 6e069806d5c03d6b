"""Put the stages together: an ordinary diffusers folder, the CLIP beside it, the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from toybox.render import SIZE
from toybox.stage_unet import new_scheduler


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
) -> None:
    """Write `folder`: StableDiffusionPipeline in float16 safetensors, and `clip/` in it."""
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
    # unless told otherwise diffusers reads its networks as float32, but transformers as the
    # config says: without this the two would not fit together
    config = folder / "text_encoder" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    cast(Any, clip).half().save_pretrained(folder / "clip")
    cast(Any, tokenizer).save_pretrained(folder / "clip")
    # the towers see -1..1, as the VAE does
    processor: Any = CLIPImageProcessor(
        size={"height": SIZE, "width": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_center_crop=False,
    )
    processor.save_pretrained(folder / "clip")
