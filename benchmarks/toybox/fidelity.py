"""How faithful and how varied pictures are, without a judge that was trained."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from PIL import Image

from composer.diffusion.model import Model
from composer.diffusion.preview import to_image


@torch.no_grad()
def round_trips(
    model: Model, images: Sequence[Image.Image], *, batch_size: int = 32
) -> list[Image.Image]:
    """Each picture through the VAE and back, by the mean of its latents: the best it can show."""
    made: list[Image.Image] = []
    for begin in range(0, len(images), batch_size):
        pixels = torch.tensor(np.stack([_pixels(i) for i in images[begin : begin + batch_size]]))
        x = pixels.permute(0, 3, 1, 2).float().to(model.device) / 127.5 - 1  # (n, 3, H, W)
        latents = model.vae.encode(x).latent_dist.mode() * model.scaling_factor
        made += [to_image(image) for image in model.to_images(latents)]
    return made


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit pictures: 10 log10(255² / mean squared error)."""
    error = float(np.mean((_pixels(first).astype(np.float64) - _pixels(second)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def mean_distance(images: Sequence[Image.Image]) -> float:
    """How far pictures lie from each other: the mean absolute difference over all pairs, 0 to 1."""
    if len(images) < 2:
        raise ValueError("a distance needs two pictures.")
    arrays = [_pixels(image).astype(np.float32) / 255 for image in images]
    return float(np.mean([np.abs(a - b).mean() for a, b in combinations(arrays, 2)]))


def _pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(image.convert("RGB"))
