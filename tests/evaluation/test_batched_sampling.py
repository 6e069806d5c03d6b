from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.toybox.fidelity import psnr
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.errors import ComposerError
from composer.evaluation.sampling import Sampling, Shot, sample

# the third is longer than one chunk of tokens
SHOTS = [
    Shot(prompt="a cat", seed=3),
    Shot(prompt="", seed=4),
    Shot(prompt="a red car next to a very long description of many things", seed=5),
    Shot(prompt="a dog", seed=3),
]


@pytest.fixture(scope="module")
def model(tiny_zero_snr_sd: Path) -> Model:
    return load_model(tiny_zero_snr_sd)


@pytest.mark.parametrize("sampler", ["DDIM", "DPM++ 2M", "Euler"])
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_a_picture_is_the_one_that_generate_makes(
    model: Model, sampler: str, cfg_scale: float
) -> None:
    sampling = Sampling(steps=4, cfg_scale=cfg_scale, sampler=sampler, batch_size=3)
    made = list(sample(model, SHOTS, sampling))
    assert len(made) == len(SHOTS)
    for shot, image in zip(SHOTS, made, strict=True):
        request = Request(
            prompt=shot.prompt, seed=shot.seed, steps=4, cfg_scale=cfg_scale, sampler=sampler
        )
        alone = [event.image for event in generate(model, request) if isinstance(event, Picture)]
        difference = np.asarray(image).astype(int) - np.asarray(alone[0])
        assert np.abs(difference).max() <= 1
    assert psnr(made[0], made[3]) < 60  # same seed, another prompt


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M SDE", "DPM2 a Karras"])
def test_samplers_that_draw_noise_are_refused(sampler: str) -> None:
    with pytest.raises(ComposerError, match="draws noise at every step"):
        Sampling(sampler=sampler)


@pytest.mark.parametrize("name", ["steps", "cfg_scale", "batch_size"])
def test_bad_settings_are_refused(name: str) -> None:
    with pytest.raises(ComposerError, match=f"{name} is 0.*1 or more"):
        Sampling.from_json({name: 0})
