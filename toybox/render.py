"""Render a scene: deterministic by the random state given."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from toybox.backgrounds import LIGHT, draw_background
from toybox.figures import figure_picture
from toybox.styles import apply_style
from toybox.world import ANIMALS, CHARACTERS, Figure, Scene

SIZE = 128
GRID = 8
"""Figures stand on a grid of one latent's side, so that each has one look in latent space and not
sixty-four, and each in its column, nearer or farther: a small U-Net needs to learn no more."""

_MIDDLES = {1: (64,), 2: (32, 96), 3: (24, 64, 104)}
_ROOM = {1: (60, 74), 2: (60, 74), 3: (41, 58)}
"""Width and height that a figure has, by the number of figures. One alone is as large as one of
two, and so has the same look in latent space: larger, it had a look of its own, learned from fewer
pictures, and was drawn as a smear when pairs could be named."""
_FEET = {1: 112, 2: 112, 3: 110}

_SCALE = {
    **dict.fromkeys(("tree", "house", "castle", "giraffe", "elephant"), 1.08),
    **dict.fromkeys(("apple", "strawberry", "donut", "ball", "crab", "mushroom", "heart"), 0.82),
    **dict.fromkeys(
        (
            "balloon",
            "airplane",
            "ufo",
            "rocket",
            "butterfly",
            "star",
            "gift",
            "cake",
            "burger",
            "banana",
        ),
        0.88,
    ),
}
_HOVERS = {
    **dict.fromkeys(("balloon", "airplane", "ufo", "butterfly", "rocket"), 0.16),
    **dict.fromkeys(("star", "heart", "umbrella"), 0.08),
}
"""How far above the ground a thing hovers, as a part of the picture."""


def figure_boxes(count: int) -> list[tuple[int, int, int, int]]:
    """Where the figures of a scene of `count` stand: left, top, right, bottom of each, in pixels.

    A figure that hovers or wears a hat may reach beyond its box.
    """
    half = {1: 32, 2: 32, 3: 20}[count]
    top, bottom = _FEET[count] - GRID - _ROOM[count][1], _FEET[count]
    return [(middle - half, max(top, 0), middle + half, bottom) for middle in _MIDDLES[count]]


@cache
def _placed(figure: Figure, count: int) -> tuple[Image.Image, Image.Image, int, int]:
    """A figure's layer and shadow, and where its layer's left and upper edge lie, for a figure
    that stands at the origin."""
    picture = figure_picture(figure.name, figure.colour, figure.wears)
    bare = figure_picture(figure.name, figure.colour, None)
    width, height = _ROOM[count]
    scale = min(width / bare.width, height / bare.height) * _SCALE.get(figure.name, 1.0)
    if figure.name not in ANIMALS and figure.name not in CHARACTERS:
        scale = min(scale, width / bare.width, (width + 8) / bare.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    layer = Image.new("RGBA", (size[0] + 8, size[1] + 8))
    edge = Image.new("L", layer.size)
    edge.paste(picture.getchannel("A"), (4, 4))
    # a soft dark edge lifts the figure from any ground
    soft = edge.filter(ImageFilter.GaussianBlur(1.4))
    layer.putalpha(soft.point([round(v * 0.55) for v in range(256)]))
    layer.alpha_composite(picture, (4, 4))
    return layer, _shadow(max(round(size[0] * 0.9), 8)), -layer.width // 2, -layer.height + 4


@cache
def _shadow(width: int) -> Image.Image:
    """The shadow of a figure on the ground it stands on."""
    side, depth = 2 * width, max(width // 2, 12)
    y, x = np.mgrid[0:depth, 0:side].astype(np.float32)
    away = ((x - (side - 1) / 2) / (width / 2)) ** 2
    away = away + ((y - (depth - 1) / 2) / max(width * 0.11, 4)) ** 2
    return Image.fromarray((np.exp(-away * 1.5) * 150).astype(np.uint8))


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """`scene` as an RGB picture of 128 px; the figures' places vary with `rng`."""
    backdrop = draw_background(scene.background, SIZE, rng)
    image = backdrop.behind.copy()
    count = len(scene.figures)
    mask = Image.new("L", image.size)
    light = LIGHT.get(scene.background)
    placed: list[tuple[int, Figure, int]] = []
    for x, figure in zip(_MIDDLES[count], scene.figures, strict=True):
        placed.append((_FEET[count] + rng.choice((0, -GRID)), figure, x))
    for feet, figure, x in sorted(placed, key=lambda place: place[0]):
        layer, shadow, left, top = _placed(figure, count)
        hover = round(_HOVERS.get(figure.name, 0) * SIZE / (1 if count == 1 else 1.4) / GRID) * GRID
        if hover:
            shadow = shadow.point([round(v * 0.55) for v in range(256)])
        image.paste((14, 12, 30), (x - shadow.width // 2, feet - shadow.height // 2 - 1), shadow)
        if light:
            layer = ImageChops.multiply(layer, _light(light, layer.size))
        place = (x + left, feet + top - hover)
        image.paste(layer, place, layer)
        alpha = layer.getchannel("A").point([0] * 160 + [255] * 96)
        mask.paste(alpha, place, alpha)
    if backdrop.before is not None:
        image.paste(backdrop.before, (0, 0), backdrop.before)
    return image if scene.style is None else apply_style(image, scene.style, mask)


@cache
def _light(light: tuple[float, float, float], size: tuple[int, int]) -> Image.Image:
    r, g, b = (round(part * 255) for part in light)
    return Image.new("RGBA", size, (r, g, b, 255))
