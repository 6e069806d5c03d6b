"""What a half-made picture looks like, cheaply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch.nn import functional

from composer.diffusion.model import Model

# Up to so many pixels in all, decoding is about as fast as the linear map, and exact.
DECODED_PIXELS = 128 * 128

_maps: WeakKeyDictionary[Model, torch.Tensor] = WeakKeyDictionary()


@torch.no_grad()
def preview(model: Model, latents: torch.Tensor) -> Image.Image:
    """One image of all ``latents (batch, channels, h, w)``, side by side in a near-square grid.

    Small pictures are decoded; of larger ones each latent pixel becomes a colour by the linear map
    that fits the model's own decoder best, and the result is enlarged to the picture's size.
    """
    batch, _, height, width = latents.shape
    size = (width * model.multiple, height * model.multiple)
    if batch * size[0] * size[1] <= DECODED_PIXELS:
        return _grid([to_image(image) for image in model.to_images(latents)])
    if model not in _maps:
        _maps[model] = fit_linear_map(model)
    weights = _maps[model].to(latents.device)
    colours = torch.einsum("bchw,cr->brhw", latents.float(), weights[:-1])
    colours = colours + weights[-1].view(1, 3, 1, 1)
    small = [to_image(image) for image in colours.clamp(0, 1).cpu()]
    return _grid([image.resize(size, Image.Resampling.BICUBIC) for image in small])


@torch.no_grad()
def fit_linear_map(model: Model) -> torch.Tensor:
    """Least-squares map ``(channels + 1, 3)`` from a latent pixel and 1 to its colour in [0, 1].

    Fitted on the decoder's pictures of random latents of several smoothnesses: white noise alone
    lies far from the latents of pictures.
    """
    generator = torch.Generator().manual_seed(0)
    fields: list[torch.Tensor] = []
    for side in (1, 2, 4, 8, 16):
        noise = torch.randn(2, model.latent_channels, side, side, generator=generator)
        fields.append(functional.interpolate(noise, size=(16, 16), mode="nearest"))
    latents = torch.cat(fields)  # (10, channels, 16, 16)
    images = functional.avg_pool2d(model.to_images(latents), model.multiple)  # (10, 3, 16, 16)
    pixels = latents.movedim(1, -1).flatten(0, 2)
    pixels = torch.cat([pixels, torch.ones(len(pixels), 1)], dim=1)
    colours = images.movedim(1, -1).flatten(0, 2)
    return torch.linalg.lstsq(pixels, colours).solution  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def to_image(image: torch.Tensor) -> Image.Image:
    """A PIL image of ``(3, H, W)`` in [0, 1]."""
    return Image.fromarray((image * 255).round().to(torch.uint8).movedim(0, -1).numpy())


def _grid(images: Sequence[Image.Image]) -> Image.Image:
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, rows * height))
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * width, i // columns * height))
    return grid
