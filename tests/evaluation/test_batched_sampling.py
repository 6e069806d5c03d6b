from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.toybox.fidelity import mean_distance, psnr, round_trips
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


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ComposerError, match="at least 1"):
        Sampling(steps=0)


def test_round_trips_are_the_vaes_own(model: Model) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    images = [Image.fromarray(array) for array in noise]
    made = round_trips(model, images, batch_size=2)
    assert [image.size for image in made] == [(16, 16)] * 3
    again = round_trips(model, images[2:], batch_size=1)
    assert psnr(made[2], again[0]) > 45


def test_psnr_and_distance() -> None:
    black, grey, white = (Image.new("RGB", (4, 4), (v, v, v)) for v in (0, 51, 255))
    assert psnr(black, black) == float("inf")
    assert psnr(black, white) == pytest.approx(0)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(5))
    assert mean_distance([black, grey, white]) == pytest.approx((0.2 + 1 + 0.8) / 3)
    with pytest.raises(ValueError, match="two pictures"):
        mean_distance([black])
