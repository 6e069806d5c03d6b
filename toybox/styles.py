"""Styles only LoRAs know: filters over a finished picture.

Each redraws the picture from what stands within a few pixels of a place, and its finest strokes
are about two pixels wide: a base model that was never shown a style can still be bent to it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

PIXEL = 4
"""Side of one square of the pixel art; the grid begins at the picture's corner."""


def _mapped(image: Image.Image, curve: Callable[[int], float]) -> Image.Image:
    """Every value of every channel put through `curve`, and kept in 0 to 255."""
    values = [min(max(int(curve(value)), 0), 255) for value in range(256)]
    return image.point(values * len(image.getbands()))


def _pixel_art(image: Image.Image) -> Image.Image:
    size = (image.width // PIXEL, image.height // PIXEL)
    small = np.array(image.resize(size, Image.Resampling.BOX).convert("HSV"))
    small[..., 1] = np.minimum(small[..., 1] * 1.25, 255)
    squares = Image.fromarray(small, "HSV").convert("RGB")
    return squares.resize(image.size, Image.Resampling.NEAREST)


def _edges(image: Image.Image, softness: float) -> Image.Image:
    """Edge strength of all three channels, 0 to 255, in one grey picture."""
    parts = [channel.filter(ImageFilter.FIND_EDGES) for channel in image.split()]
    edges = ImageChops.lighter(ImageChops.lighter(parts[0], parts[1]), parts[2])
    pixels = np.array(edges)
    pixels[[0, -1], :] = 0  # FIND_EDGES leaves the border as it was
    pixels[:, [0, -1]] = 0
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(softness))


def _pencil_sketch(image: Image.Image) -> Image.Image:
    grey = ImageOps.grayscale(image).convert("RGB")
    tone = _mapped(Image.blend(grey, image, 0.4), lambda v: 95 + 0.63 * v)
    lines = ImageOps.invert(_mapped(_edges(image, 0.8), lambda v: min(1.6 * v, 140)))
    drawn = ImageChops.multiply(tone, lines.convert("RGB"))
    return ImageChops.multiply(drawn, Image.new("RGB", image.size, (250, 246, 234)))


def _neon(image: Image.Image) -> Image.Image:
    hsv = np.array(image.convert("HSV"))
    hsv[..., 1] = np.maximum(hsv[..., 1], 190)
    dim = Image.fromarray(hsv, "HSV").convert("RGB")
    dim = ImageChops.multiply(dim, Image.new("RGB", image.size, (100, 90, 130)))
    hsv[..., 2] = 255
    vivid = Image.fromarray(hsv, "HSV").convert("RGB").filter(ImageFilter.GaussianBlur(1))
    strength = _mapped(_edges(image, 1.0), lambda v: min(2.2 * max(v - 8, 0), 220))
    glow = ImageChops.multiply(vivid, Image.merge("RGB", [strength] * 3))
    return ImageChops.add(ImageChops.add(dim, Image.new("RGB", image.size, (8, 4, 22))), glow)


_FILTERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "pixel art": _pixel_art,
    "pencil sketch": _pencil_sketch,
    "neon": _neon,
}


def apply_style(image: Image.Image, style: str) -> Image.Image:
    """`image` (RGB) redrawn in `style`."""
    return _FILTERS[style](image)
