"""Styles only LoRAs know: filters over a finished picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps


def _mapped(image: Image.Image, curve: Callable[[int], int]) -> Image.Image:
    """Every value of every channel put through `curve`."""
    return image.point([curve(value) for value in range(256)] * len(image.getbands()))


def _pixel_art(image: Image.Image) -> Image.Image:
    side = image.width // 3 + 1
    small = image.resize((side, side), Image.Resampling.BOX)
    small = small.quantize(16, dither=Image.Dither.NONE).convert("RGB")
    return small.resize(image.size, Image.Resampling.NEAREST)


def _edges(image: Image.Image) -> Image.Image:
    """Edge strength of all three channels, 0 to 255, in one grey picture."""
    parts = [channel.filter(ImageFilter.FIND_EDGES) for channel in image.split()]
    edges = ImageChops.lighter(ImageChops.lighter(parts[0], parts[1]), parts[2])
    pixels = np.array(edges)
    pixels[[0, -1], :] = 0  # FIND_EDGES leaves the border as it was
    pixels[:, [0, -1]] = 0
    return Image.fromarray(pixels)


def _pencil_sketch(image: Image.Image) -> Image.Image:
    lines = ImageOps.invert(_mapped(_edges(image), lambda v: min(int(v * 2.4), 215)))
    tone = _mapped(ImageOps.grayscale(image), lambda v: 190 + v // 4)
    drawn = ImageChops.multiply(tone, lines)
    return ImageOps.colorize(drawn, (34, 34, 40), (250, 246, 234))


def _neon(image: Image.Image) -> Image.Image:
    strength = _mapped(_edges(image), lambda v: 0 if v < 40 else min(int(v * 2.2), 255))
    hsv = np.array(image.convert("HSV"))
    hsv[..., 1] = np.maximum(hsv[..., 1], 190)
    hsv[..., 2] = 255
    vivid = Image.fromarray(hsv, "HSV").convert("RGB")
    glow = ImageChops.multiply(vivid, Image.merge("RGB", [strength] * 3))
    halo = _mapped(glow.filter(ImageFilter.GaussianBlur(2)), lambda v: min(int(v * 1.1), 255))
    dark = Image.new("RGB", image.size, (10, 6, 28))
    return ImageChops.add(ImageChops.add(dark, halo), glow)


_FILTERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "pixel art": _pixel_art,
    "pencil sketch": _pencil_sketch,
    "neon": _neon,
}


def apply_style(image: Image.Image, style: str) -> Image.Image:
    """`image` (RGB) redrawn in `style`."""
    return _FILTERS[style](image)
