"""Render a scene: deterministic by the random state given."""

from __future__ import annotations

import random

from PIL import Image

from toybox.backgrounds import draw_background
from toybox.sprites import figure_sprite
from toybox.styles import apply_style
from toybox.world import Scene

SIZE = 64
GRID = 4
"""Figures stand on a grid of one latent's side, so that each has one look in latent space and not
sixteen: a small U-Net needs to learn no more."""


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """`scene` as an RGB picture of 64 px; the figures' places vary with `rng`."""
    image = draw_background(scene.background, SIZE, rng).convert("RGBA")
    alone = len(scene.figures) == 1
    for index, figure in enumerate(scene.figures):
        size = 41 if alone else 29
        left = 12 + rng.choice((-GRID, 0, GRID)) if alone else (1, 33)[index]
        drawn = figure_sprite(figure.name, figure.colour, figure.wears, size)
        top = (54 if alone else 50) + rng.choice((0, GRID)) - drawn.height
        # a tall hat may leave the picture
        image.alpha_composite(drawn, (left, max(top, 0)), (0, max(-top, 0)))
    finished = image.convert("RGB")
    return finished if scene.style is None else apply_style(finished, scene.style)
