"""The VAE's latents are normalised without changing a picture."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from toybox.networks import decode, encode, posterior
from toybox.stage_vae import new_vae, normalise_latents, pictures, psnr, to_tensor


def test_sixty_four_pixels_become_sixteen_by_sixteen_by_eight() -> None:
    vae = new_vae().eval()
    with torch.no_grad():
        latents = encode(vae, torch.zeros(1, 3, 64, 64))
        assert tuple(latents.shape) == (1, 8, 16, 16)
        assert tuple(decode(vae, latents).shape) == (1, 3, 64, 64)
    assert vae.config["scaling_factor"] == 1.0


@torch.no_grad()
def test_normalising_changes_no_picture_and_gives_unit_latents() -> None:
    torch.manual_seed(0)
    vae = new_vae().eval()
    count = 32
    x = pictures(random.Random("normalise"), count, base=1.0)
    # latents far from normal, so that something is to be done
    vae.quant_conv.weight.mul_(7)
    vae.quant_conv.bias.add_(torch.linspace(-3, 3, 16))
    out = decode(vae, encode(vae, x))
    normalise_latents(vae, count)
    after = posterior(vae, x)
    assert torch.allclose(decode(vae, after.mean), out, atol=1e-4)
    assert after.mean.mean((0, 2, 3)).abs().max() < 1e-4
    assert (after.mean.std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert after.var.sqrt().max() < 0.003


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
