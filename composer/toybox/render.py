"""Render a scene: deterministic by the random state given."""

from __future__ import annotations

import random

from PIL import Image

from composer.toybox.backgrounds import draw_background
from composer.toybox.sprites import figure_sprite
from composer.toybox.styles import apply_style
from composer.toybox.world import Scene

SIZE = 64


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """`scene` as an RGB picture of 64 px; size and place of figures vary with `rng`."""
    image = draw_background(scene.background, SIZE, rng).convert("RGBA")
    alone = len(scene.figures) == 1
    for index, figure in enumerate(scene.figures):
        size = rng.choice((38, 41, 44) if alone else (28, 29, 30))
        centre = 32 if alone else (17 if index == 0 else 47)
        x = centre - size // 2 + rng.randint(-5, 5) * (1 if alone else 0)
        x += 0 if alone else rng.randint(-1, 1)
        low = 58 if alone else 52
        drawn = figure_sprite(figure.name, figure.colour, figure.wears, size)
        y = low - drawn.height + rng.randint(-3, 3)
        image.alpha_composite(drawn, (max(x, 0), max(y, 0)))
    finished = image.convert("RGB")
    return finished if scene.style is None else apply_style(finished, scene.style)
