"""An assembled folder is an ordinary Stable Diffusion, offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from composer.diffusion import load_model
from toybox.assemble import assemble, text_encoder_of
from toybox.networks import token_ids
from toybox.render import SIZE
from toybox.stage_clip import new_clip
from toybox.stage_unet import CROSS, new_unet
from toybox.stage_vae import LATENT_CHANNELS, new_vae
from toybox.tokens import MAX_LENGTH, build_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("toybox"), build_tokenizer()
    oracle = tmp_path_factory.mktemp("oracle")
    (oracle / "oracle.json").write_text("{}")
    parts = {"vae": new_vae(), "unet": new_unet(), "clip": new_clip(tokenizer)}
    assemble(folder, **parts, tokenizer=tokenizer, oracle=oracle)
    return folder


@torch.no_grad()
def test_the_text_encoder_is_the_clips_text_tower() -> None:
    tokenizer = build_tokenizer()
    clip = new_clip(tokenizer).eval()
    tokens = token_ids(tokenizer, ["a cat on the beach", "zibo fox"], padding="max_length")
    assert tuple(tokens.shape) == (2, MAX_LENGTH)
    of_the_clip = clip.text_model(input_ids=tokens).last_hidden_state
    of_the_pipeline = text_encoder_of(clip)(tokens).last_hidden_state
    assert torch.equal(of_the_clip, of_the_pipeline)


def test_diffusers_loads_it_and_makes_a_picture(folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipeline("a red car", num_inference_steps=2, generator=generator).images[0]
    assert image.size == (SIZE, SIZE)
    assert np.asarray(image).std() > 0
    settings = pipeline.scheduler.config
    assert settings["prediction_type"] == "v_prediction"
    assert settings["rescale_betas_zero_snr"]
    assert settings["timestep_spacing"] == "trailing"
    assert not list(folder.rglob("*.bin"))


def test_composer_loads_it_and_reads_its_sizes(folder: Path) -> None:
    model = load_model(str(folder))
    factor = SIZE // new_unet().config["sample_size"]
    assert (model.size, model.multiple, model.latent_channels) == (SIZE, factor, LATENT_CHANNELS)
    assert (model.token_limit, model.cross_attention_dim) == (MAX_LENGTH, CROSS)


@torch.no_grad()
def test_its_clip_and_its_oracle_lie_beside_it(folder: Path) -> None:
    assert (folder / "oracle" / "oracle.json").read_text() == "{}"
    clip = CLIPModel.from_pretrained(folder / "clip", local_files_only=True).float()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip", local_files_only=True)
    processor = CLIPImageProcessor.from_pretrained(folder / "clip", local_files_only=True)
    white = np.full((SIZE, SIZE, 3), 255, np.uint8)
    pixels = processor(images=[white], return_tensors="pt").pixel_values
    assert tuple(pixels.shape) == (1, 3, SIZE, SIZE)
    assert pixels.unique().tolist() == [1.0]
    tokens = token_ids(tokenizer, ["a cat"], padding="max_length")
    out = clip(input_ids=tokens, pixel_values=pixels)
    assert tuple(out.logits_per_image.shape) == (1, 1)
