"""Backgrounds of the world, drawn by code; each varies with its random state.

A background is what lies behind the figures, and where they stand: `Place` says the tone of light
that falls on them, and how much of a shadow they cast. Some have a foreground before the figures.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from toybox.arrays import clipped
from toybox.world import GROUNDS

RGB = tuple[int, int, int]
_SUPER = 3  # drawn three times as large, then reduced: smooth edges

VARIANTS = 48
"""Each background comes in so many variants: enough to differ, few enough to keep."""


@dataclass(frozen=True, slots=True)
class Backdrop:
    """One variant of a background: what is behind the figures and what is before them."""

    behind: Image.Image
    before: Image.Image | None


def _mix(first: RGB, second: RGB, part: float) -> RGB:
    r, g, b = (round(a + (c - a) * part) for a, c in zip(first, second, strict=True))
    return r, g, b


class _Canvas:
    """A picture in unit coordinates, drawn at three times its size, with a foreground."""

    def __init__(self, size: int, stops: list[tuple[float, RGB]]) -> None:
        self.size = size
        self.side = size * _SUPER
        heights = np.linspace(0, 1, self.side)
        bands = [
            np.interp(heights, [at for at, _ in stops], [colour[i] for _, colour in stops])
            for i in range(3)
        ]
        column = np.stack(bands, 1).astype(np.uint8)[:, None]
        self.image = Image.fromarray(np.repeat(column, self.side, 1))
        self.draw = ImageDraw.Draw(self.image)
        self.before: Image.Image | None = None

    def foreground(self) -> None:
        """From here on, what is drawn lies before the figures."""
        self.before = Image.new("RGBA", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.before)

    def disc(self, x: float, y: float, r: float, colour: RGB, flat: float = 1.0) -> None:
        s = self.side
        self.draw.ellipse(
            ((x - r) * s, (y - r * flat) * s, (x + r) * s, (y + r * flat) * s), fill=colour
        )

    def ring(self, x: float, y: float, r: float, colour: RGB, width: float) -> None:
        s = self.side
        box = ((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s)
        self.draw.ellipse(box, outline=colour, width=max(round(width * s), 1))

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        s = self.side
        self.draw.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: RGB) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def line(self, points: list[tuple[float, float]], width: float, colour: RGB) -> None:
        s = self.side
        scaled = [(x * s, y * s) for x, y in points]
        self.draw.line(scaled, fill=colour, width=max(round(width * s), 1), joint="curve")

    def land(self, height: Callable[[float], float], top: RGB, bottom: RGB, depth: float) -> None:
        """Ground below the line `height`, shaded from `top` to `bottom` over `depth`."""
        steps = 24
        for step in range(steps):
            part = step / (steps - 1)
            points = [(i / 48, height(i / 48) + depth * step / steps) for i in range(49)]
            self.polygon([*points, (1, 1.01), (0, 1.01)], _mix(top, bottom, part))

    def glow(self, x: float, y: float, r: float, colour: RGB, strength: float = 0.6) -> None:
        """Light around a point, added to what is drawn."""
        axis = np.linspace(0, 1, self.side, dtype=np.float32)
        away = np.sqrt((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / r
        light = strength * np.exp(-(away**2) * 2)[..., None]
        own = np.asarray(self.image).astype(np.float32)
        mixed = own + (np.array(colour, np.float32) - own) * light
        self.image.paste(Image.fromarray(clipped(mixed, 0, 255).astype(np.uint8)))

    def cloud(self, x: float, y: float, size: float, colour: RGB) -> None:
        shade = _mix(colour, (120, 160, 210), 0.16)
        for tint, drop in ((shade, 0.012), (colour, 0)):
            for dx, dy, r in (
                (-0.9, 0.25, 0.5),
                (-0.3, -0.1, 0.72),
                (0.4, 0, 0.62),
                (1, 0.3, 0.42),
            ):
                self.disc(x + dx * size, y + dy * size + drop, r * size, tint, 0.8)

    def done(self) -> Backdrop:
        size = (self.size, self.size)
        before = self.before and self.before.resize(size, Image.Resampling.BOX)
        return Backdrop(self.image.resize(size, Image.Resampling.BOX), before)


def _corner(rng: random.Random) -> float:
    """A horizontal position near one of the upper corners, where no figure hides it."""
    return rng.choice((0.16, 0.84)) + rng.uniform(-0.04, 0.04)


def _hills(rng: random.Random, base: float, swing: float, waves: float) -> Callable[[float], float]:
    phase, tilt = rng.uniform(0, math.tau), rng.uniform(-0.03, 0.03)
    return lambda x: (
        base
        + swing * math.sin(phase + x * waves)
        + 0.35 * swing * math.sin(phase * 2 + x * 2.3 * waves)
        + tilt * (x - 0.5)
    )


def _beach(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (74, 170, 240)), (0.5, (196, 234, 252)), (1, (196, 234, 252))])
    sun = _corner(rng)
    canvas.glow(sun, 0.14, 0.3, (255, 250, 210), 0.8)
    canvas.disc(sun, 0.14, 0.07, (255, 228, 96))
    canvas.cloud(1 - sun + rng.uniform(-0.06, 0.06), 0.17, 0.085, (255, 255, 255))
    sea = 0.5
    for step in range(20):
        y = sea + step * 0.012
        canvas.box(0, y, 1, 1, _mix((24, 118, 188), (72, 204, 214), step / 19))
    shore = _hills(rng, 0.69, 0.018, 5)
    canvas.land(lambda x: shore(x) - 0.02, (250, 254, 252), (250, 254, 252), 0.01)
    canvas.land(shore, (214, 182, 122), (246, 222, 164), 0.1)
    side = 1 if sun < 0.5 else 0  # a palm on the other side
    x = 0.94 if side else 0.06
    lean = -0.05 if side else 0.05
    trunk = [(x, 0.76), (x + lean * 0.3, 0.55), (x + lean, 0.36)]
    canvas.line(trunk, 0.032, (132, 90, 54))
    for angle in (-2.9, -2.3, -1.5, -0.8, -0.2, 0.5, 2.7):
        cx, cy = x + lean, 0.36
        tip = (cx + 0.15 * math.cos(angle), cy + 0.11 * math.sin(angle) + 0.03)
        middle = (cx + 0.08 * math.cos(angle), cy + 0.08 * math.sin(angle) - 0.025)
        canvas.polygon([(cx, cy - 0.012), middle, tip, (cx, cy + 0.02)], (46, 140, 70))
    canvas.foreground()
    for _ in range(3):
        canvas.disc(rng.uniform(0.04, 0.96), rng.uniform(0.94, 0.98), 0.016, (255, 246, 226), 0.6)
    return canvas.done()


def _night(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (10, 14, 56)), (0.7, (58, 62, 140)), (1, (58, 62, 140))])
    for _ in range(22):
        r = rng.choice((0.005, 0.007, 0.01))
        canvas.disc(rng.random(), rng.uniform(0.02, 0.56), r, (250, 246, 220))
    moon = _corner(rng)
    canvas.glow(moon, 0.16, 0.32, (180, 190, 250), 0.55)
    canvas.disc(moon, 0.16, 0.1, (255, 246, 206))
    canvas.disc(moon - 0.03, 0.14, 0.02, (236, 222, 176))
    canvas.disc(moon + 0.035, 0.185, 0.026, (236, 222, 176))
    canvas.land(_hills(rng, 0.62, 0.05, 4), (40, 48, 112), (34, 42, 96), 0.2)
    canvas.land(_hills(rng, 0.7, 0.03, 5), (32, 60, 92), (18, 40, 62), 0.2)
    return canvas.done()


def _snow(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (120, 160, 212)), (0.6, (222, 234, 246)), (1, (222, 234, 246))])
    for x, height in ((0.14, 0.3), (0.82, 0.24), (0.5, 0.38)):
        x += rng.uniform(-0.05, 0.05)
        canvas.polygon([(x - 0.34, 0.7), (x, height), (x + 0.34, 0.7)], (128, 156, 198))
        canvas.polygon([(x, height), (x + 0.34, 0.7), (x + 0.06, 0.7)], (104, 134, 182))
        top = height + 0.11
        canvas.polygon(
            [
                (x, height),
                (x + 0.094, top),
                (x + 0.04, top - 0.02),
                (x, top + 0.02),
                (x - 0.05, top - 0.02),
                (x - 0.094, top),
            ],
            (250, 252, 255),
        )
    for x in (0.06, 0.19, 0.83, 0.95):
        x += rng.uniform(-0.02, 0.02)
        for tier in range(3):
            y = 0.46 + tier * 0.07
            w = 0.045 + tier * 0.018
            canvas.polygon([(x - w, y + 0.1), (x, y - 0.02), (x + w, y + 0.1)], (42, 104, 96))
            canvas.polygon(
                [(x - w * 0.5, y + 0.04), (x, y - 0.02), (x + w * 0.5, y + 0.04)], (240, 248, 252)
            )
    canvas.land(_hills(rng, 0.68, 0.02, 5), (232, 240, 250), (252, 253, 255), 0.2)
    canvas.foreground()
    for _ in range(18):
        canvas.disc(rng.random(), rng.random() * 0.95, rng.choice((0.008, 0.012)), (255, 255, 255))
    return canvas.done()


def _city(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (112, 178, 236)), (0.7, (226, 238, 246)), (1, (226, 238, 246))])
    canvas.cloud(_corner(rng), 0.12, 0.07, (255, 255, 255))
    x = -0.05
    while x < 1:  # far houses in the haze
        width = rng.uniform(0.08, 0.14)
        canvas.box(x, rng.uniform(0.26, 0.44), x + width, 0.8, (166, 194, 220))
        x += width
    walls = ((206, 96, 78), (232, 178, 96), (92, 136, 176), (150, 112, 160), (120, 160, 130))
    x, last = -rng.uniform(0, 0.08), -1
    while x < 1:
        colour = rng.choice([i for i in range(len(walls)) if i != last])
        last = colour
        top = rng.choice((0.18, 0.26, 0.34))
        canvas.box(x, top, x + 0.21, 0.76, walls[colour])
        canvas.box(x, top, x + 0.21, top + 0.02, _mix(walls[colour], (40, 40, 50), 0.4))
        y = top + 0.06
        while y < 0.66:
            for column in range(3):
                left = x + 0.025 + column * 0.062
                canvas.box(left, y, left + 0.036, y + 0.05, (255, 240, 170))
                canvas.box(left, y + 0.026, left + 0.036, y + 0.05, (246, 214, 130))
            y += 0.09
        x += 0.22
    canvas.box(0, 0.72, 1, 1, (176, 178, 184))
    canvas.box(0, 0.755, 1, 1, (92, 96, 106))
    canvas.box(0, 0.755, 1, 0.768, (70, 72, 80))
    for step in range(5):
        left = step * 0.25 - 0.08
        canvas.box(left, 0.955, left + 0.13, 0.975, (244, 214, 96))
    return canvas.done()


def _underwater(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (92, 214, 232)), (0.5, (28, 142, 204)), (1, (8, 70, 146))])
    ray = Image.new("L", (canvas.side, canvas.side))
    pen = ImageDraw.Draw(ray)
    for _ in range(4):
        x, w, s = rng.random(), rng.uniform(0.04, 0.1), canvas.side
        pen.polygon(
            [
                (x * s, 0),
                ((x + w) * s, 0),
                ((x + w + 0.12) * s, 0.8 * s),
                ((x - 0.12) * s, 0.8 * s),
            ],
            fill=52,
        )
    ray = ray.filter(ImageFilter.GaussianBlur(8))
    canvas.image.paste((190, 244, 250), (0, 0), ray)
    canvas.land(_hills(rng, 0.62, 0.05, 4), (18, 104, 164), (16, 92, 150), 0.1)
    canvas.land(_hills(rng, 0.76, 0.02, 5), (216, 196, 140), (238, 222, 170), 0.15)
    for x in (0.05, 0.94):
        x += rng.uniform(-0.02, 0.03)
        for dx, height, colour in ((-0.03, 0.3, (24, 140, 96)), (0.035, 0.2, (50, 176, 110))):
            bend = rng.uniform(0, 6)
            stalk = [
                (x + dx + 0.018 * math.sin(bend + i * 1.3), 0.86 - height * i / 6) for i in range(7)
            ]
            canvas.line(stalk, 0.026, colour)
    coral = rng.choice((0.15, 0.85))
    for angle in (-2.3, -1.57, -0.8):
        tip = (coral + 0.07 * math.cos(angle), 0.8 + 0.1 * math.sin(angle))
        canvas.line([(coral, 0.83), tip], 0.03, (244, 110, 124))
        canvas.disc(*tip, 0.02, (244, 110, 124))
    for _ in range(9):
        x, y, r = rng.random(), rng.uniform(0.04, 0.6), rng.uniform(0.01, 0.026)
        canvas.ring(x, y, r, (216, 248, 255), 0.007)
    return canvas.done()


def _meadow(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (84, 174, 244)), (0.6, (216, 240, 254)), (1, (216, 240, 254))])
    cloud = _corner(rng)
    canvas.cloud(cloud, 0.15, 0.1, (255, 255, 255))
    canvas.cloud(1 - cloud, 0.27, 0.06, (255, 255, 255))
    canvas.land(_hills(rng, 0.52, 0.05, 4), (152, 206, 150), (130, 194, 120), 0.2)
    canvas.land(_hills(rng, 0.62, 0.035, 5), (132, 204, 92), (104, 182, 70), 0.2)
    canvas.land(_hills(rng, 0.74, 0.015, 5), (116, 192, 70), (72, 150, 48), 0.25)
    petals = ((255, 255, 255), (255, 214, 70), (250, 120, 160))
    for _ in range(8):
        x, y = rng.random(), rng.uniform(0.77, 0.86)
        canvas.disc(x, y, 0.012, rng.choice(petals))
    canvas.foreground()
    for _ in range(5):
        x, y, colour = rng.random(), rng.uniform(0.92, 0.97), rng.choice(petals)
        canvas.line([(x, y), (x, 1)], 0.01, (44, 120, 40))
        for angle in range(5):
            a = angle * math.tau / 5
            canvas.disc(x + 0.017 * math.cos(a), y + 0.017 * math.sin(a), 0.013, colour)
        canvas.disc(x, y, 0.011, (250, 170, 40))
    return canvas.done()


def _desert(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (246, 168, 92)), (0.55, (255, 232, 176)), (1, (255, 232, 176))])
    sun = _corner(rng)
    canvas.glow(sun, 0.18, 0.35, (255, 250, 220), 0.8)
    canvas.disc(sun, 0.18, 0.085, (255, 250, 226))
    x = 1 - sun
    canvas.polygon([(x - 0.2, 0.66), (x, 0.4), (x + 0.2, 0.66)], (214, 150, 84))
    canvas.polygon([(x, 0.4), (x + 0.2, 0.66), (x + 0.03, 0.66)], (176, 112, 58))
    canvas.land(_hills(rng, 0.6, 0.045, 4), (234, 176, 96), (216, 150, 74), 0.15)
    canvas.land(_hills(rng, 0.7, 0.03, 4), (244, 192, 110), (214, 146, 68), 0.3)
    return canvas.done()


def _sunset(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(
        size,
        [(0, (74, 44, 130)), (0.28, (206, 74, 126)), (0.55, (255, 176, 88)), (1, (255, 176, 88))],
    )
    sun = 0.5 + rng.uniform(-0.3, 0.3)
    canvas.glow(sun, 0.5, 0.5, (255, 226, 130), 0.8)
    canvas.disc(sun, 0.5, 0.14, (255, 240, 160))
    for step in range(20):
        canvas.box(0, 0.56 + step * 0.014, 1, 1, _mix((226, 108, 104), (92, 52, 128), step / 19))
    for step in range(7):
        y, w = 0.575 + step * 0.03, 0.13 - step * 0.014 + rng.uniform(-0.02, 0.02)
        canvas.box(sun - w, y, sun + w, y + 0.012, (255, 214, 128))
    canvas.land(_hills(rng, 0.79, 0.012, 4), (94, 54, 96), (58, 34, 74), 0.2)
    return canvas.done()


def _forest(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (60, 128, 96)), (0.6, (206, 232, 160)), (1, (206, 232, 160))])
    canvas.glow(0.5 + rng.uniform(-0.2, 0.2), 0.4, 0.4, (250, 255, 210), 0.7)
    for colour, count, width in (((126, 176, 128), 7, 0.035), ((70, 120, 84), 5, 0.055)):
        for i in range(count):
            x = (i + rng.uniform(0.2, 0.8)) / count
            canvas.box(x - width / 2, 0, x + width / 2, 0.76, colour)
    for x in (0.04, 0.96):
        x += rng.uniform(-0.03, 0.03)
        canvas.box(x - 0.055, 0, x + 0.055, 0.8, (96, 66, 46))
        canvas.box(x - 0.055, 0, x - 0.015, 0.8, (118, 84, 58))
        canvas.polygon(
            [(x - 0.1, 0.83), (x - 0.05, 0.7), (x + 0.05, 0.7), (x + 0.1, 0.83)], (96, 66, 46)
        )
    for i in range(9):
        x, y = i / 8, rng.uniform(-0.02, 0.07)
        canvas.disc(x, y, 0.11, rng.choice(((34, 104, 62), (46, 122, 70), (28, 90, 56))), 0.8)
    canvas.land(_hills(rng, 0.74, 0.012, 6), (98, 150, 66), (54, 100, 46), 0.2)
    canvas.foreground()
    for corner in (0.0, 1.0):
        for angle in (-2.6, -2.1, -1.57, -1.0, -0.5):
            tip = (corner + 0.14 * math.cos(angle), 1.0 + 0.16 * math.sin(angle))
            canvas.polygon([(corner - 0.03, 1.02), tip, (corner + 0.03, 1.02)], (36, 112, 52))
    return canvas.done()


def _room(size: int, rng: random.Random) -> Backdrop:
    wall = rng.choice(((238, 214, 176), (224, 196, 186), (206, 214, 190)))
    canvas = _Canvas(size, [(0, wall), (1, _mix(wall, (120, 90, 70), 0.2))])
    for i in range(9):
        canvas.box(i / 8 - 0.022, 0, i / 8 + 0.022, 0.7, _mix(wall, (255, 255, 255), 0.25))
    x = 0.2 if rng.random() < 0.5 else 0.8  # a window, and a picture on the other side
    canvas.box(x - 0.17, 0.08, x + 0.17, 0.48, (250, 250, 246))
    canvas.box(x - 0.145, 0.105, x + 0.145, 0.455, (148, 208, 248))
    canvas.disc(x + 0.05, 0.2, 0.04, (255, 255, 255), 0.6)
    canvas.box(x - 0.145, 0.39, x + 0.145, 0.455, (128, 196, 104))
    canvas.box(x - 0.012, 0.1, x + 0.012, 0.46, (250, 250, 246))
    canvas.box(x - 0.145, 0.272, x + 0.145, 0.296, (250, 250, 246))
    for side in (-1, 1):
        edge = x + side * 0.19
        canvas.polygon(
            [
                (edge, 0.06),
                (edge - side * 0.1, 0.06),
                (edge - side * 0.02, 0.52),
                (edge + side * 0.02, 0.52),
            ],
            (204, 84, 84),
        )
    canvas.box(1 - x - 0.1, 0.14, 1 - x + 0.1, 0.36, (140, 92, 56))
    canvas.box(1 - x - 0.075, 0.165, 1 - x + 0.075, 0.335, (250, 236, 200))
    canvas.polygon([(1 - x - 0.07, 0.33), (1 - x, 0.22), (1 - x + 0.07, 0.33)], (90, 150, 170))
    canvas.box(0, 0.67, 1, 0.7, (250, 246, 236))
    for row in range(6):
        y = 0.7 + row * 0.05
        canvas.box(0, y, 1, y + 0.05, _mix((198, 138, 84), (168, 108, 60), row / 5))
        canvas.box(0, y, 1, y + 0.006, (138, 88, 50))
        for joint in range(3):
            left = (joint + 0.5 * (row % 2)) / 2.5
            canvas.box(left, y, left + 0.006, y + 0.05, (138, 88, 50))
    canvas.disc(0.5, 0.9, 0.42, (122, 70, 110), 0.2)
    canvas.disc(0.5, 0.9, 0.37, (186, 110, 150), 0.19)
    return canvas.done()


def _moon(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (4, 4, 14)), (1, (22, 22, 44))])
    for _ in range(26):
        canvas.disc(
            rng.random(), rng.uniform(0.02, 0.6), rng.choice((0.005, 0.008)), (255, 255, 255)
        )
    earth = _corner(rng)
    canvas.glow(earth, 0.18, 0.26, (90, 150, 250), 0.6)
    canvas.disc(earth, 0.18, 0.12, (40, 110, 220))
    for dx, dy, r in ((-0.04, -0.03, 0.045), (0.045, 0.04, 0.04), (0.03, -0.07, 0.025)):
        canvas.disc(earth + dx, 0.18 + dy, r, (84, 178, 92), 0.8)
    canvas.disc(earth - 0.01, 0.12, 0.05, (240, 248, 255), 0.3)
    canvas.land(_hills(rng, 0.64, 0.03, 6), (120, 122, 134), (108, 110, 122), 0.1)
    canvas.land(_hills(rng, 0.72, 0.015, 5), (204, 206, 214), (158, 160, 170), 0.3)
    for x, y, r in (
        (0.1, 0.8, 0.08),
        (0.9, 0.78, 0.07),
        (0.5, 0.95, 0.1),
        (0.2, 0.93, 0.06),
        (0.84, 0.92, 0.08),
    ):
        x += rng.uniform(-0.04, 0.04)
        canvas.disc(x, y, r, (226, 228, 234), 0.32)
        canvas.disc(x, y + 0.006, r * 0.9, (124, 126, 138), 0.3)
        canvas.disc(x, y + 0.014, r * 0.75, (146, 148, 160), 0.26)
    return canvas.done()


def _volcano(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (38, 10, 18)), (0.65, (196, 52, 20)), (1, (196, 52, 20))])
    canvas.glow(0.5, 0.68, 0.5, (255, 150, 40), 0.6)
    for x, tip, w in ((0.2, 0.26, 0.34), (0.84, 0.2, 0.34)):
        x += rng.uniform(-0.05, 0.05)
        canvas.polygon(
            [(x - w, 0.74), (x - 0.06, tip), (x + 0.06, tip), (x + w, 0.74)], (58, 34, 40)
        )
        canvas.polygon(
            [(x + 0.02, tip), (x + 0.06, tip), (x + w, 0.74), (x + 0.1, 0.74)], (40, 24, 32)
        )
        flow = [(x, tip + 0.01), (x - 0.03, tip + 0.14), (x + 0.03, tip + 0.27), (x - 0.01, 0.74)]
        canvas.line(flow, 0.045, (255, 96, 10))
        canvas.line(flow, 0.02, (255, 206, 70))
        canvas.disc(x, tip, 0.06, (255, 120, 20), 0.3)
        canvas.glow(x, tip - 0.04, 0.16, (255, 130, 40), 0.5)
    canvas.box(0, 0.7, 1, 1, (255, 122, 16))
    for _ in range(10):
        canvas.disc(rng.random(), 0.7 + rng.random() * 0.08, 0.09, (255, 196, 60), 0.12)
    canvas.land(_hills(rng, 0.79, 0.02, 7), (86, 52, 50), (44, 26, 32), 0.2)
    for _ in range(4):
        x, y = rng.random(), rng.uniform(0.88, 0.98)
        canvas.line([(x - 0.07, y), (x, y + 0.012), (x + 0.06, y - 0.01)], 0.014, (255, 120, 20))
    canvas.foreground()
    for _ in range(9):
        canvas.disc(rng.random(), rng.uniform(0.05, 0.7), rng.choice((0.007, 0.01)), (255, 214, 90))
    return canvas.done()


def _candy_land(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (158, 214, 255)), (0.6, (255, 214, 236)), (1, (255, 214, 236))])
    canvas.cloud(_corner(rng), 0.15, 0.09, (255, 236, 246))
    canvas.land(_hills(rng, 0.54, 0.05, 5), (196, 240, 214), (170, 226, 196), 0.2)
    for x in (0.1, 0.9):
        x += rng.uniform(-0.03, 0.03)
        top = 0.4 + rng.uniform(-0.03, 0.03)
        canvas.line([(x, top), (x, 0.8)], 0.024, (255, 255, 255))
        rings = ((240, 60, 110), (255, 255, 255))
        for step, r in enumerate((0.1, 0.078, 0.056, 0.034, 0.014)):
            canvas.disc(x, top, r, rings[step % 2])
    for x, height in ((0.3, 0.46), (0.7, 0.44)):  # candy canes
        x += rng.uniform(-0.03, 0.03)
        hook = [
            (x, 0.76),
            (x, height),
            (x + 0.015, height - 0.03),
            (x + 0.05, height - 0.035),
            (x + 0.065, height),
        ]
        canvas.line(hook, 0.03, (255, 255, 255))
        for step in range(5):
            y = height + 0.02 + step * 0.06
            canvas.polygon(
                [
                    (x - 0.015, y + 0.02),
                    (x + 0.015, y),
                    (x + 0.015, y + 0.024),
                    (x - 0.015, y + 0.044),
                ],
                (230, 40, 60),
            )
    canvas.land(_hills(rng, 0.72, 0.018, 6), (255, 176, 212), (246, 128, 184), 0.25)
    canvas.foreground()
    for _ in range(7):
        colour = rng.choice(((255, 226, 90), (110, 210, 250), (140, 226, 120), (178, 120, 240)))
        x, y = rng.random(), rng.uniform(0.93, 0.985)
        canvas.disc(x, y, 0.026, _mix(colour, (90, 40, 90), 0.3), 0.8)
        canvas.disc(x, y - 0.004, 0.024, colour, 0.8)
    return canvas.done()


def _cherry_blossoms(size: int, rng: random.Random) -> Backdrop:
    canvas = _Canvas(size, [(0, (150, 206, 244)), (0.6, (252, 236, 240)), (1, (252, 236, 240))])
    x = 0.5 + rng.uniform(-0.12, 0.12)
    canvas.polygon(
        [(x - 0.4, 0.68), (x - 0.05, 0.3), (x + 0.05, 0.3), (x + 0.4, 0.68)], (132, 156, 200)
    )
    canvas.polygon(
        [
            (x - 0.11, 0.37),
            (x - 0.05, 0.3),
            (x + 0.05, 0.3),
            (x + 0.11, 0.37),
            (x + 0.04, 0.36),
            (x, 0.39),
            (x - 0.04, 0.36),
        ],
        (250, 252, 255),
    )
    canvas.land(_hills(rng, 0.64, 0.02, 5), (168, 210, 150), (146, 196, 124), 0.2)
    for side in (0.02, 0.98):
        lean = 0.12 if side < 0.5 else -0.12
        canvas.line(
            [(side, 0.8), (side + lean * 0.3, 0.5), (side + lean, 0.2)], 0.05, (104, 66, 62)
        )
        for _ in range(26):
            away, angle = rng.random() ** 0.5 * 0.22, rng.uniform(0, math.tau)
            tint = rng.choice(((255, 176, 204), (250, 150, 188), (255, 206, 224), (255, 190, 212)))
            canvas.disc(
                side + lean * 0.8 + away * math.cos(angle) * 1.3,
                0.16 + away * math.sin(angle) * 0.8,
                0.055,
                tint,
            )
    canvas.land(_hills(rng, 0.75, 0.012, 5), (150, 202, 110), (108, 166, 80), 0.2)
    canvas.disc(0.5, 0.9, 0.46, (226, 206, 178), 0.17)
    for _ in range(16):
        canvas.disc(rng.random(), rng.uniform(0.78, 0.98), 0.012, (255, 184, 208), 0.6)
    canvas.foreground()
    for _ in range(12):
        canvas.disc(rng.random(), rng.uniform(0.3, 0.95), 0.011, (255, 196, 216), 0.7)
    return canvas.done()


_DRAW: dict[str, Callable[[int, random.Random], Backdrop]] = {
    "beach": _beach,
    "night": _night,
    "snow": _snow,
    "city": _city,
    "underwater": _underwater,
    "meadow": _meadow,
    "desert": _desert,
    "sunset": _sunset,
    "forest": _forest,
    "room": _room,
    "moon": _moon,
    "volcano": _volcano,
    "candy land": _candy_land,
    "cherry blossoms": _cherry_blossoms,
}

LIGHT: dict[str, tuple[float, float, float]] = {
    "night": (0.82, 0.85, 1.0),
    "underwater": (0.84, 0.96, 1.0),
    "sunset": (1.0, 0.88, 0.84),
    "forest": (0.95, 1.0, 0.92),
    "volcano": (1.0, 0.88, 0.8),
    "moon": (0.96, 0.97, 1.0),
}
"""The tone of light on figures, by place: a factor of each colour."""


def _plain(size: int, colour: RGB, rng: random.Random) -> Backdrop:
    """A studio: a wall of one colour, lit from above, that runs into the floor."""
    shade = rng.uniform(0.97, 1.03)
    low: RGB = _mix(colour, (0, 0, 0), 0.16)
    high: RGB = _mix(colour, (255, 255, 255), 0.08)
    canvas = _Canvas(size, [(0, high), (0.68, colour), (0.72, low), (1, _mix(low, colour, 0.8))])
    canvas.glow(rng.uniform(0.35, 0.65), 0.35, 0.55, _mix(colour, (255, 255, 255), 0.3), 0.45)
    scaled = np.asarray(canvas.image).astype(np.float32) * shade
    canvas.image.paste(Image.fromarray(clipped(scaled, 0, 255).astype(np.uint8)))
    return canvas.done()


@cache
def _variant(name: str, size: int, variant: int) -> Backdrop:
    rng = random.Random(zlib.crc32(f"{name} {variant}".encode()))
    if name.startswith("plain "):
        return _plain(size, GROUNDS[name.removeprefix("plain ")], rng)
    return _DRAW[name](size, rng)


def draw_background(name: str, size: int, rng: random.Random) -> Backdrop:
    """The background `name` ("beach", "plain red", ...) in one of its variants, of `size` px."""
    return _variant(name, size, rng.randrange(VARIANTS))
