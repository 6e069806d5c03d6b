from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.toybox.fidelity import mean_distance, psnr, round_trips
from composer.diffusion.load import load_model


def test_round_trips_are_the_vaes_own(tiny_zero_snr_sd: Path) -> None:
    model = load_model(tiny_zero_snr_sd)
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
