"""Backgrounds of the toybox's world, drawn by code; each varies with its random state."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable
from functools import cache
from itertools import pairwise

from PIL import Image, ImageDraw

from toybox.world import GROUNDS

RGB = tuple[int, int, int]
_SUPER = 4  # drawn four times as large, then reduced: smooth edges


def _gradient(size: int, stops: list[tuple[float, RGB]]) -> Image.Image:
    """A vertical gradient of `size` px through (height, colour) stops."""
    column = Image.new("RGB", (1, size))
    for y in range(size):
        t = y / (size - 1)
        for (t0, low), (t1, high) in pairwise(stops):
            if t0 <= t <= t1:
                f = (t - t0) / max(t1 - t0, 1e-6)
                mixed = tuple(round(a + (b - a) * f) for a, b in zip(low, high, strict=True))
                column.putpixel((0, y), (mixed[0], mixed[1], mixed[2]))
                break
    return column.resize((size, size))


class _Canvas:
    """A picture in unit coordinates, drawn at four times its size."""

    def __init__(self, size: int, stops: list[tuple[float, RGB]]) -> None:
        self.size = size
        self.side = size * _SUPER
        self.image = _gradient(self.side, stops)
        self.draw = ImageDraw.Draw(self.image)

    def disc(self, x: float, y: float, r: float, colour: RGB, outline: RGB | None = None) -> None:
        s = self.side
        box = ((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s)
        if outline is None:
            self.draw.ellipse(box, fill=colour)
        else:
            self.draw.ellipse(box, outline=outline, width=max(round(0.014 * s), 1))

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        s = self.side
        self.draw.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: RGB) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def done(self) -> Image.Image:
        return self.image.resize((self.size, self.size), Image.Resampling.BOX)


def _corner(rng: random.Random) -> float:
    """A horizontal position near one of the upper corners, where no figure hides it."""
    return rng.choice((0.14, 0.86)) + rng.uniform(-0.05, 0.05)


def _beach(size: int, rng: random.Random) -> Image.Image:
    canvas = _Canvas(size, [(0, (112, 196, 250)), (0.45, (206, 238, 252)), (1, (206, 238, 252))])
    canvas.box(0, 0.42, 1, 0.6, (36, 142, 190))
    shore = 0.58 + rng.uniform(-0.03, 0.03)
    canvas.box(0, shore, 1, 1, (238, 212, 150))
    canvas.box(0, shore, 1, shore + 0.02, (250, 244, 226))
    canvas.disc(_corner(rng), 0.13, 0.075, (255, 224, 90))
    return canvas.done()


def _night(size: int, rng: random.Random) -> Image.Image:
    canvas = _Canvas(size, [(0, (8, 10, 44)), (0.75, (30, 34, 92)), (1, (30, 34, 92))])
    for _ in range(12):
        canvas.disc(rng.random(), rng.uniform(0.02, 0.7), 0.011, (240, 240, 220))
    canvas.disc(_corner(rng), 0.14, 0.085, (252, 244, 200))
    canvas.box(0, 0.82 + rng.uniform(-0.02, 0.02), 1, 1, (14, 24, 30))
    return canvas.done()


def _snow(size: int, rng: random.Random) -> Image.Image:
    canvas = _Canvas(size, [(0, (166, 186, 214)), (0.6, (214, 226, 240)), (1, (214, 226, 240))])
    canvas.polygon([(0, 0.6), (0.2, 0.34), (0.42, 0.6)], (190, 204, 226))
    canvas.polygon([(0.5, 0.6), (0.8, 0.28), (1.1, 0.6)], (180, 196, 222))
    canvas.box(0, 0.58, 1, 1, (248, 250, 254))
    for _ in range(16):
        canvas.disc(rng.random(), rng.random() * 0.6, 0.013, (255, 255, 255))
    return canvas.done()


def _city(size: int, rng: random.Random) -> Image.Image:
    canvas = _Canvas(size, [(0, (176, 206, 230)), (0.7, (222, 228, 232)), (1, (222, 228, 232))])
    x = -rng.uniform(0, 0.1)
    while x < 1:
        width = rng.uniform(0.14, 0.2)
        top = rng.uniform(0.12, 0.4)
        shade = rng.choice((104, 120, 136))
        canvas.box(x, top, x + width, 0.76, (shade, shade + 4, shade + 16))
        for row in range(4):
            for column in range(2):
                left = x + 0.035 + column * width / 2
                upper = top + 0.05 + row * 0.1
                if upper < 0.7:
                    canvas.box(left, upper, left + 0.03, upper + 0.035, (250, 226, 140))
        x += width + 0.012
    canvas.box(0, 0.74, 1, 1, (84, 86, 92))
    canvas.box(0, 0.74, 1, 0.77, (160, 160, 160))
    return canvas.done()


def _underwater(size: int, rng: random.Random) -> Image.Image:
    canvas = _Canvas(size, [(0, (56, 190, 218)), (0.9, (8, 66, 132)), (1, (8, 66, 132))])
    for _ in range(7):
        x, y = rng.random(), rng.uniform(0.04, 0.8)
        canvas.disc(x, y, rng.uniform(0.015, 0.03), (0, 0, 0), outline=(206, 244, 252))
    canvas.box(0, 0.9, 1, 1, (194, 178, 128))
    for x in (0.07, 0.93):
        x += rng.uniform(-0.03, 0.03)
        canvas.polygon([(x - 0.03, 0.92), (x, 0.66), (x + 0.03, 0.92)], (38, 142, 92))
    return canvas.done()


def _meadow(size: int, rng: random.Random) -> Image.Image:
    canvas = _Canvas(size, [(0, (130, 202, 252)), (0.6, (224, 244, 255)), (1, (224, 244, 255))])
    x = _corner(rng)
    for shift, r in ((-0.07, 0.045), (0, 0.06), (0.07, 0.045)):
        canvas.disc(x + shift, 0.14, r, (255, 255, 255))
    canvas.disc(0.25, 1.02, 0.48, (122, 196, 88))
    canvas.disc(0.8, 1.05, 0.5, (96, 176, 70))
    canvas.box(0, 0.8, 1, 1, (86, 166, 62))
    for _ in range(7):
        canvas.disc(
            rng.random(),
            rng.uniform(0.84, 0.98),
            0.016,
            rng.choice(((255, 255, 255), (252, 214, 70), (250, 130, 170))),
        )
    return canvas.done()


def _desert(size: int, rng: random.Random) -> Image.Image:
    canvas = _Canvas(size, [(0, (252, 206, 130)), (0.6, (254, 236, 190)), (1, (254, 236, 190))])
    canvas.disc(_corner(rng), 0.15, 0.08, (255, 246, 214))
    peak = 0.3 + rng.uniform(-0.12, 0.12)
    canvas.polygon([(-0.3, 0.9), (peak, 0.5), (1.1, 0.9)], (226, 166, 88))
    canvas.polygon([(0.1, 0.9), (peak + 0.5, 0.56), (1.5, 0.9)], (208, 144, 70))
    canvas.box(0, 0.76, 1, 1, (196, 130, 60))
    return canvas.done()


def _sunset(size: int, rng: random.Random) -> Image.Image:
    canvas = _Canvas(
        size,
        [(0, (84, 46, 122)), (0.35, (226, 84, 104)), (0.62, (255, 180, 84)), (1, (255, 180, 84))],
    )
    canvas.disc(0.5 + rng.uniform(-0.3, 0.3), 0.6, 0.12, (255, 232, 130))
    canvas.box(0, 0.62, 1, 1, (52, 30, 62))
    return canvas.done()


def _moon(size: int, rng: random.Random) -> Image.Image:
    canvas = _Canvas(size, [(0, (6, 6, 12)), (1, (16, 16, 28))])
    for _ in range(12):
        canvas.disc(rng.random(), rng.uniform(0.02, 0.5), 0.01, (255, 255, 255))
    earth = _corner(rng)
    canvas.disc(earth, 0.15, 0.1, (52, 120, 220))
    canvas.disc(earth - 0.03, 0.13, 0.035, (84, 178, 92))
    canvas.disc(earth + 0.04, 0.18, 0.03, (84, 178, 92))
    canvas.disc(0.5, 1.5, 0.95, (172, 172, 178))
    canvas.box(0, 0.8, 1, 1, (172, 172, 178))
    for x in (0.12, 0.5, 0.88):
        x += rng.uniform(-0.06, 0.06)
        y = rng.uniform(0.84, 0.94)
        s = canvas.side
        box = ((x - 0.08) * s, (y - 0.03) * s, (x + 0.08) * s, (y + 0.03) * s)
        canvas.draw.ellipse(box, fill=(126, 126, 134))
    return canvas.done()


def _volcano(size: int, rng: random.Random) -> Image.Image:
    canvas = _Canvas(size, [(0, (48, 8, 6)), (0.7, (168, 40, 14)), (1, (168, 40, 14))])
    for x0, x1, tip in ((-0.1, 0.3, 0.2), (0.7, 1.1, 0.14)):
        middle = (x0 + x1) / 2 + rng.uniform(-0.05, 0.05)
        canvas.polygon([(x0, 0.8), (middle, tip), (x1, 0.8)], (40, 30, 34))
        canvas.polygon(
            [(middle - 0.03, tip + 0.16), (middle, tip), (middle + 0.03, 0.8), (middle, 0.8)],
            (255, 140, 20),
        )
    points = [(0.0, 1.0), (0.0, 0.8)]
    phase = rng.uniform(0, math.tau)
    points += [(i / 12, 0.79 + 0.025 * math.sin(i * 1.6 + phase)) for i in range(13)]
    canvas.polygon([*points, (1.0, 1.0)], (255, 120, 12))
    for _ in range(6):
        canvas.disc(rng.random(), rng.uniform(0.85, 0.98), 0.025, (255, 220, 70))
    return canvas.done()


_DRAW: dict[str, Callable[[int, random.Random], Image.Image]] = {
    "beach": _beach,
    "night": _night,
    "snow": _snow,
    "city": _city,
    "underwater": _underwater,
    "meadow": _meadow,
    "desert": _desert,
    "sunset": _sunset,
    "moon": _moon,
    "volcano": _volcano,
}


VARIANTS = 64
"""Each background comes in so many variants: enough to differ, few enough to keep."""


def draw_background(name: str, size: int, rng: random.Random) -> Image.Image:
    """The background `name` ("beach", "plain red", ...) as an RGB picture of `size` px."""
    return _variant(name, size, rng.randrange(VARIANTS)).copy()


@cache
def _variant(name: str, size: int, variant: int) -> Image.Image:
    rng = random.Random(zlib.crc32(f"{name} {variant}".encode()))
    if name.startswith("plain "):
        shade = rng.uniform(0.94, 1.04)
        r, g, b = (min(round(c * shade), 255) for c in GROUNDS[name.removeprefix("plain ")])
        return Image.new("RGB", (size, size), (r, g, b))
    return _DRAW[name](size, rng)
