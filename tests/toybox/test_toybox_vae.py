"""What the VAE learns from: pictures as numbers, a ring of renderings, and measures of likeness."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from toybox.render import SIZE
from toybox.stage_vae import (
    Rendered,
    detail_share,
    picture_loss,
    pictures,
    psnr,
    to_tensor,
)


def test_pictures_become_numbers_between_minus_one_and_one() -> None:
    images = [Image.new("RGB", (4, 2), colour) for colour in ((0, 0, 0), (255, 0, 127))]
    x = to_tensor(images)
    assert tuple(x.shape) == (2, 3, 2, 4)
    assert x[0].unique().tolist() == [-1.0]
    assert x[1, :, 0, 0].tolist() == pytest.approx([1.0, -1.0, 127 / 127.5 - 1])


def test_psnr_is_that_of_the_formula() -> None:
    x = torch.zeros(2, 3, 4, 4)
    y = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)])
    assert psnr(x, y).tolist() == pytest.approx([20.0, 0.0], abs=1e-4)


def test_a_shift_of_brightness_costs_less_than_blur() -> None:
    x = pictures(random.Random(0), 2)
    soft = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    brighter = x + (soft - x).abs().mean()  # as far away in L1
    assert float(picture_loss(x, x)) == 0
    assert picture_loss(brighter, x) < 0.7 * picture_loss(soft, x)


def test_the_share_of_detail_is_the_part_that_half_the_resolution_loses() -> None:
    ramp = torch.linspace(-1, 1, 16).expand(2, 3, 16, 16)
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    board = board.expand(2, 3, 16, 16)
    assert float(detail_share(ramp)) < 0.02
    assert float(detail_share(board)) == pytest.approx(1.0)
    # whatever the scale, and more with more of it
    some = ramp + 0.3 * board
    assert float(detail_share(7 * some)) == pytest.approx(float(detail_share(some)), rel=1e-5)
    assert detail_share(ramp) < detail_share(some) < detail_share(ramp + board)
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert 0.6 < float(detail_share(noise)) < 0.9


def test_the_ring_keeps_scenes_with_their_pictures_and_lets_the_oldest_go() -> None:
    data = Rendered(random.Random(1), 6)
    data.renew(4)
    first = list(data.scenes)
    data.renew(4)
    assert len(data.scenes) == len(data.pictures) == 6
    assert data.scenes[:2] == first[2:]
    scenes, x = data.draw(8)
    assert tuple(x.shape) == (8, 3, SIZE, SIZE)
    for scene, picture in zip(scenes, x, strict=True):
        stored = data.pictures[data.scenes.index(scene)]
        assert torch.equal(picture, stored.float() / 127.5 - 1)
