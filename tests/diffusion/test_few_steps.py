"""Models and samplers for few steps: an LCM's U-Net reads the guidance scale itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from composer.diffusion.load import load_model
from composer.diffusion.request import Request
from composer.diffusion.sample import Step, generate
from composer.errors import ComposerError


@pytest.fixture(scope="module")
def lcm(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a U-Net that reads the guidance scale."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    folder = tmp_path_factory.mktemp("lcm") / "lcm"
    shutil.copytree(tiny_sd, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet: Any = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 16})
        unet.save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "LatentConsistencyModelPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
def test_same_latents_as_diffusers_draws(lcm: Path, cfg_scale: float) -> None:
    from diffusers import LCMScheduler
    from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
        LatentConsistencyModelPipeline,
    )

    model = load_model(lcm)
    assert model.guides_itself
    request = Request(prompt="a fox", seed=5, steps=4, cfg_scale=cfg_scale, sampler="LCM")
    ours = [event.latents for event in generate(model, request) if isinstance(event, Step)][-1]
    (encoder,) = model.encoders.values()
    pipeline: Any = LatentConsistencyModelPipeline(
        vae=model.vae,
        text_encoder=encoder.network,
        tokenizer=encoder.tokenizer,
        unet=model.unet,
        scheduler=LCMScheduler.from_config(dict(model.scheduler_config)),
        safety_checker=None,  # pyright: ignore
        feature_extractor=None,  # pyright: ignore
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a fox",
        num_inference_steps=4,
        guidance_scale=cfg_scale,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
        height=16,
        width=16,
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["LCM", "TCD"])
def test_more_steps_than_such_samplers_make_are_refused(sampler: str, tiny_sd: Path) -> None:
    with pytest.raises(ComposerError, match="60 steps are more than the 50 of this sampler"):
        generate(load_model(tiny_sd), Request(prompt="a", seed=1, steps=60, sampler=sampler))


def test_a_folder_whose_scheduler_says_nothing_of_clipping(tiny_sd: Path, tmp_path: Path) -> None:
    """diffusers' pipeline switches clipping off, and so DDIM draws as with a config that does."""
    folder = Path(shutil.copytree(tiny_sd, tmp_path / "silent"))
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    del config["clip_sample"], config["set_alpha_to_one"]
    path.write_text(json.dumps({**config, "_class_name": "EulerDiscreteScheduler"}))
    request = Request(prompt="a fox", seed=5, steps=4, cfg_scale=3.0, sampler="DDIM")
    drawn = [
        [event.latents for event in generate(load_model(its), request) if isinstance(event, Step)]
        for its in (folder, tiny_sd)
    ]
    # all but the last step, which the other thing that the config no longer says decides
    torch.testing.assert_close(drawn[0][:-1], drawn[1][:-1])
