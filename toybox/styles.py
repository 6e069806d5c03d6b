"""Styles only LoRAs know: filters over a finished picture and the outline of its figures.

Each redraws the picture from what stands within a few pixels of a place, and its patterns repeat
with the latents' grid of 8 px: a base model that was never shown a style can still be bent to it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from toybox.arrays import Floats, clipped, floats, pictured, smoothed, unit

PIXEL = 4
"""Side of one square of the pixel art, two by two of them to one latent."""


def _blur(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


@cache
def _noise(size: int, smooth: float, name: str) -> Floats:
    """Fixed smooth noise of deviation 1, (size, size)."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    grid = floats(rng.normal(size=(size, size)))
    if smooth:
        grid = smoothed(grid, smooth)
    return (grid - grid.mean()) / grid.std()


def _edges(image: Image.Image, softness: float) -> Floats:
    """Strength of edges, the strongest of the three channels, about 0 to 1."""
    values = unit(_blur(image, softness) if softness else image)
    dx = np.zeros_like(values)
    dy = np.zeros_like(values)
    dx[:, 1:-1] = (values[:, 2:] - values[:, :-2]) / 2
    dy[1:-1] = (values[2:] - values[:-2]) / 2
    return np.sqrt(dx**2 + dy**2).max(-1)


def _outline(mask: Image.Image, width: int) -> Floats:
    """1 along the inner rim of the figures, `width` px wide."""
    inner = mask
    for _ in range(width):
        inner = inner.filter(ImageFilter.MinFilter(3))
    return unit(mask) - unit(inner)


def _pixel_art(image: Image.Image, mask: Image.Image) -> Image.Image:
    size = (image.width // PIXEL, image.height // PIXEL)
    crisp = image.filter(ImageFilter.UnsharpMask(3, 120, 0))
    small = crisp.resize(size, Image.Resampling.BOX)
    vivid = np.array(small.convert("HSV"))
    vivid[..., 1] = np.minimum(vivid[..., 1] * 1.3, 255)
    squares = Image.fromarray(vivid, "HSV").convert("RGB")
    squares = squares.quantize(20, method=Image.Quantize.MEDIANCUT, kmeans=2).convert("RGB")
    # figures keep a rim, one square wide, in darker shades of their own colours
    covered = mask.resize(size, Image.Resampling.BOX).point([0] * 110 + [255] * 146)
    rim = _outline(covered, 1)[..., None] * 0.3
    return pictured(unit(squares) * (1 - rim)).resize(image.size, Image.Resampling.NEAREST)


def _pencil_sketch(image: Image.Image, mask: Image.Image) -> Image.Image:
    size = image.width
    tone = unit(_blur(image.convert("L"), 1.0))
    y, x = np.mgrid[0:size, 0:size]
    paper = 0.955 + 0.012 * _noise(size, 0.7, "paper")
    # strokes: the darker the tone, the more of two directions of hatching
    first = (np.sin((x + y) * np.pi / 2) + 1) / 2
    second = (np.sin((x - y) * np.pi / 2) + 1) / 2
    grey = paper - 0.42 * first * clipped(0.78 - tone, 0, 1) ** 0.9
    grey = grey - 0.5 * second * clipped(0.45 - tone, 0, 1)
    grey = grey - 0.16 * clipped(0.9 - tone, 0, 1)
    # a line where a place is darker than what is around it, in any colour
    darker = (unit(_blur(image, 1.8)) - unit(_blur(image, 0.5))).max(-1)
    lines = clipped(darker * 3.3 - 0.08, 0, 0.6)
    grey = grey - lines * (0.92 + 0.08 * _noise(size, 1.2, "pressure"))
    return pictured(clipped(grey, 0.08, 1)[..., None] * np.array([1, 0.985, 0.95], np.float32))


def _neon(image: Image.Image, mask: Image.Image) -> Image.Image:
    hsv = np.array(_blur(image, 0.8).convert("HSV"))
    hsv[..., 1] = clipped(hsv[..., 1].astype(int) * 2, 170, 255)
    hsv[..., 2] = 255
    vivid = unit(Image.fromarray(hsv, "HSV").convert("RGB"))
    inside = unit(mask)
    edges = clipped(_edges(image, 0.6) * 4.5 - 0.25, 0, 1) * (0.5 + 0.5 * inside)
    rim = np.maximum(_outline(mask, 2), 0)
    lines = np.maximum(edges, rim)[..., None] * vivid
    glow = unit(_blur(pictured(lines), 1.5)) * 0.8 + unit(_blur(pictured(lines), 5)) * 1.1
    core = clipped(np.maximum(edges * inside, rim) - 0.55, 0, 1)[..., None] * 0.5
    dim = unit(image) * np.array([0.1, 0.08, 0.16], np.float32)
    return pictured(dim + np.array([0.02, 0.01, 0.06], np.float32) + lines * 0.9 + glow + core)


def _watercolor(image: Image.Image, mask: Image.Image) -> Image.Image:
    size = image.width
    # edges wander, as wet paint does
    dx = np.rint(_noise(size, 4, "wander x") * 0.8).astype(np.int32)
    dy = np.rint(_noise(size, 4, "wander y") * 0.8).astype(np.int32)
    y, x = np.mgrid[0:size, 0:size]
    rows, columns = clipped(y + dy, 0, size - 1), clipped(x + dx, 0, size - 1)
    moved = np.asarray(image)[rows.astype(int), columns.astype(int)]
    washed = Image.fromarray(moved).filter(ImageFilter.MedianFilter(3))
    soft = unit(_blur(washed, 0.6))
    paint = 1 - (1 - soft) * 0.8  # thin paint on white
    wide = unit(_blur(washed, 4))
    paint = paint + (paint - (1 - (1 - wide) * 0.8)) * 0.3
    # pigment gathers at the edges of a stroke, and dries in blotches
    paint = paint - clipped(_edges(washed, 0.9) * 0.9 - 0.05, 0, 0.24)[..., None]
    paint = paint + 0.035 * _noise(size, 7, "blotches")[..., None]
    paint = paint + 0.016 * _noise(size, 0.8, "grain")[..., None]
    paper = np.array([0.985, 0.975, 0.95], np.float32)
    far = np.minimum(np.minimum(x, size - 1 - x), np.minimum(y, size - 1 - y))
    ragged = far + 1.8 * _noise(size, 4, "ragged")
    cover = clipped((ragged - 4) / 3, 0, 1).astype(np.float32)[..., None]
    return pictured(paper + (clipped(paint, 0, 1) - paper) * cover)


@cache
def _panes(size: int) -> NDArray[np.int32]:
    """Panes of glass: each pixel's nearest point of a shaken grid, (size, size)."""
    rng = random.Random("panes")
    step = 16
    points = [
        (column * step + rng.uniform(0.2, 0.8) * step, row * step + rng.uniform(0.2, 0.8) * step)
        for row in range(size // step)
        for column in range(size // step)
    ]
    y, x = np.mgrid[0:size, 0:size]
    away = np.stack([(x - px) ** 2 + (y - py) ** 2 for px, py in points])
    return away.argmin(0).astype(np.int32)


def _stained_glass(image: Image.Image, mask: Image.Image) -> Image.Image:
    size = image.width
    inside = np.asarray(mask) > 128
    flat = np.asarray(image.filter(ImageFilter.MedianFilter(5)))
    found = Image.fromarray(flat[inside][None]).quantize(10, kmeans=1)  # of the figures alone
    shades = np.zeros((size, size), np.uint8)
    shades[inside] = np.asarray(found)[0]
    shades = np.asarray(Image.fromarray(shades).filter(ImageFilter.ModeFilter(4)))
    panes = _panes(size)
    # a figure is cut along its colours, all else along the panes
    label = np.where(inside, 4096 + shades.astype(np.int32), panes)
    label = np.searchsorted(np.unique(label), label)
    colours = unit(image)
    count = np.bincount(label.ravel()).astype(np.float32)
    means = np.stack([np.bincount(label.ravel(), colours[..., i].ravel()) for i in range(3)], 1)
    glass = (means / count[:, None])[label].astype(np.float32)
    grey = glass.mean(-1, keepdims=True)
    glass = clipped(grey + (glass - grey) * 1.7, 0, 1) ** 0.8 * 0.9 + 0.1
    glass = glass * (1 + 0.07 * _noise(size, 2, "glass")[..., None])
    lead = np.zeros((size, size), np.float32)
    for axis in (0, 1):
        differs = (np.diff(label, axis=axis) != 0).astype(np.float32)
        pad = [(0, 0), (0, 0)]
        pad[axis] = (0, 1)
        lead = np.maximum(lead, np.pad(differs, pad))
    lead = clipped(unit(_blur(pictured(lead), 0.8)) * 1.9, 0, 1)[..., None]
    return pictured(glass * (1 - lead) + np.array([0.07, 0.07, 0.09], np.float32) * lead)


_FILTERS: dict[str, Callable[[Image.Image, Image.Image], Image.Image]] = {
    "pixel art": _pixel_art,
    "pencil sketch": _pencil_sketch,
    "neon": _neon,
    "watercolor": _watercolor,
    "stained glass": _stained_glass,
}


def apply_style(image: Image.Image, style: str, mask: Image.Image) -> Image.Image:
    """`image` (RGB) redrawn in `style`; `mask` (L) is 255 where figures are."""
    return _FILTERS[style](image, mask)
