"""Figures: glyphs as they are, and animals as a glyph's head on a body drawn by code.

A drawn figure is an RGBA picture cut to what is drawn, standing on its lower edge. Characters are
animals in other colours with details of their own; clothing is put on the head or the neck.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from toybox.arrays import clipped
from toybox.sprites import recoloured, sprite
from toybox.world import ANIMALS, CHARACTERS

RGB = tuple[int, int, int]
_WIDTH, _HEIGHT = 192, 288  # the canvas on which one animal is put together
_HEAD = 128  # width of a head on it
_NECK = 196  # where the head's lower edge stands
_SUPER = 3


@dataclass(frozen=True, slots=True)
class _Body:
    """Colours of a body, and where clothing sits: parts of the head's box, from its top left.

    `hat` is the middle of a hat's brim and its width, `eyes` the middle between the eyes and the
    width of glasses.
    """

    fur: RGB
    belly: RGB
    feet: RGB
    tail: RGB | None = None
    hat: tuple[float, float, float] = (0.5, 0.14, 0.66)
    eyes: tuple[float, float, float] = (0.5, 0.5, 0.9)


_BARE: dict[str, _Body] = {
    "cat": _Body((255, 187, 60), (255, 224, 150), (255, 224, 150), (240, 150, 30)),
    "dog": _Body((250, 238, 225), (255, 250, 242), (190, 120, 84), (190, 120, 84)),
    "fox": _Body((250, 102, 34), (252, 240, 228), (92, 52, 40), (250, 102, 34)),
    "panda": _Body((66, 66, 72), (250, 250, 250), (50, 50, 56)),
    "frog": _Body((166, 206, 40), (240, 250, 190), (120, 164, 20)),
    "pig": _Body((250, 182, 170), (255, 218, 206), (222, 120, 118)),
    "rabbit": _Body((222, 228, 234), (255, 255, 255), (255, 255, 255), (255, 255, 255)),
    "bear": _Body((146, 98, 80), (206, 162, 138), (112, 72, 58)),
    "lion": _Body((252, 196, 70), (255, 232, 160), (200, 128, 30), (146, 92, 40)),
    "koala": _Body((158, 168, 176), (226, 232, 236), (112, 122, 130)),
}

_PLACES: dict[str, dict[str, tuple[float, float, float]]] = {
    "cat": {"hat": (0.5, 0.17, 0.78), "eyes": (0.5, 0.55, 0.80)},
    "dog": {"hat": (0.5, 0.10, 0.78), "eyes": (0.5, 0.42, 0.66)},
    "fox": {"hat": (0.5, 0.24, 0.86), "eyes": (0.5, 0.60, 0.66)},
    "panda": {"hat": (0.5, 0.11, 0.78), "eyes": (0.5, 0.50, 0.72)},
    "frog": {"hat": (0.5, 0.17, 0.72), "eyes": (0.5, 0.20, 0.86)},
    "pig": {"hat": (0.5, 0.13, 0.76), "eyes": (0.5, 0.42, 0.74)},
    "rabbit": {"hat": (0.5, 0.46, 0.86), "eyes": (0.5, 0.67, 0.90)},
    "bear": {"hat": (0.5, 0.12, 0.78), "eyes": (0.5, 0.46, 0.64)},
    "lion": {"hat": (0.5, 0.16, 0.72), "eyes": (0.5, 0.49, 0.64)},
    "koala": {"hat": (0.5, 0.17, 0.70), "eyes": (0.5, 0.44, 0.60)},
}
_BODIES = {
    name: replace(body, hat=_PLACES[name]["hat"], eyes=_PLACES[name]["eyes"])
    for name, body in _BARE.items()
}


class _Layer:
    """An RGBA picture drawn at three times its size, for smooth edges."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.image = Image.new("RGBA", (width * _SUPER, height * _SUPER))
        self.draw = ImageDraw.Draw(self.image)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        s = _SUPER
        self.draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: RGB) -> None:
        self.draw.polygon([(x * _SUPER, y * _SUPER) for x, y in points], fill=colour)

    def line(self, points: list[tuple[float, float]], width: float, colour: RGB) -> None:
        scaled = [(x * _SUPER, y * _SUPER) for x, y in points]
        self.draw.line(scaled, fill=colour, width=round(width * _SUPER), joint="curve")
        for x, y in points:
            self.ellipse(x, y, width / 2, width / 2, colour)

    def done(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.BOX)


def _shade(colour: RGB, factor: float) -> RGB:
    r, g, b = (min(round(c * factor), 255) for c in colour)
    return r, g, b


def _body(body: _Body) -> Image.Image:
    """A sitting body below the neck: tail, feet, trunk, belly and arms."""
    layer = _Layer(_WIDTH, _HEIGHT)
    middle = _WIDTH / 2
    if body.tail:
        curve: list[tuple[float, float]] = [
            (middle + 26, 262),
            (middle + 54, 258),
            (middle + 68, 238),
            (middle + 66, 214),
        ]
        layer.line(curve, 20, _shade(body.tail, 0.92))
        layer.ellipse(middle + 66, 212, 12, 14, body.belly)
    for side in (-1, 1):
        layer.ellipse(middle + side * 28, 274, 26, 14, _shade(body.feet, 0.92))
    layer.ellipse(middle, 230, 48, 52, body.fur)
    layer.ellipse(middle, 238, 31, 38, body.belly)
    for side in (-1, 1):
        arm: list[tuple[float, float]] = [
            (middle + side * 40, 206),
            (middle + side * 46, 226),
            (middle + side * 34, 242),
        ]
        layer.line(arm, 19, _shade(body.fur, 0.9))
    return layer.done()


def _eye(layer: _Layer, x: float, y: float, r: float, iris: RGB) -> None:
    """A wide eye with a coloured iris."""
    layer.ellipse(x, y, r, r * 1.1, (255, 255, 255))
    layer.ellipse(x, y, r * 0.76, r * 0.84, iris)
    layer.ellipse(x, y, r * 0.36, r * 0.42, (20, 20, 30))
    layer.ellipse(x - r * 0.3, y - r * 0.35, r * 0.2, r * 0.2, (255, 255, 255))


def _scarf(layer: _Layer, colour: RGB) -> None:
    """A scarf round the neck, one end hanging down."""
    middle = _WIDTH / 2
    dark = _shade(colour, 0.72)
    layer.polygon(
        [(middle + 12, 204), (middle + 40, 200), (middle + 44, 256), (middle + 18, 260)], dark
    )
    layer.polygon(
        [(middle + 14, 204), (middle + 38, 200), (middle + 42, 250), (middle + 20, 254)], colour
    )
    layer.line([(middle - 40, 196), (middle, 207), (middle + 40, 196)], 24, dark)
    layer.line([(middle - 40, 194), (middle, 205), (middle + 40, 194)], 19, colour)


def _star(layer: _Layer, x: float, y: float, r: float, colour: RGB) -> None:
    points: list[tuple[float, float]] = []
    for corner in range(10):
        reach = r if corner % 2 == 0 else r * 0.45
        angle = np.pi * (corner / 5 - 0.5)
        points.append((x + reach * float(np.cos(angle)), y + reach * float(np.sin(angle))))
    layer.polygon(points, colour)


def _bleached(image: Image.Image, colour: RGB, strength: float = 1.0) -> Image.Image:
    """`image` with its lightness kept and its colour exchanged for shades of `colour`."""
    grey = np.asarray(image.convert("L")).astype(np.float32)[..., None] / 255
    tone = grey / max(float(np.median(grey[np.asarray(image)[..., 3] > 128])), 1e-3)
    shades = clipped(np.array(colour, np.float32) * tone, 0, 255)
    own = np.asarray(image.convert("RGB")).astype(np.float32)
    mixed = Image.fromarray((own + (shades - own) * strength).astype(np.uint8)).convert("RGBA")
    mixed.putalpha(image.getchannel("A"))
    return mixed


def _head_of(name: str) -> Image.Image:
    """The head of an animal or character, 128 px wide."""
    glyph = sprite(CHARACTERS.get(name, name))
    if name == "zibo":
        glyph = recoloured(glyph, 264, saturation=150, most=168, bright=0.95)
    elif name == "miro":
        glyph = _bleached(glyph, (104, 124, 158))
    elif name == "bodo":
        glyph = recoloured(glyph, 150, least=20, saturation=130, bright=1.42)
    elif name == "kiki":
        glyph = _bleached(glyph, (255, 206, 74))
    elif name == "luna":
        glyph = _luna()
    elif name == "tavo":
        glyph = _bleached(glyph, (38, 178, 172), 0.85)
    height = round(glyph.height * _HEAD / glyph.width)
    return glyph.resize((_HEAD, height), Image.Resampling.LANCZOS)


def _luna() -> Image.Image:
    """Luna's head: a night-blue coat; mane and horn silver and gold."""
    glyph = sprite("unicorn")
    hsv = np.asarray(glyph.convert("RGB").convert("HSV")).astype(np.float32)
    coat = hsv[..., 1] <= 70
    pink = ~coat & ((hsv[..., 0] > 200) | (hsv[..., 0] < 12))
    value = hsv[..., 2] / 255
    rgb = np.asarray(glyph.convert("RGB")).astype(np.float32)
    rgb = np.where(coat[..., None], value[..., None] * np.array([72, 84, 196]), rgb)
    silver = clipped(0.62 + 0.45 * value, 0, 1)[..., None] * np.array([176, 238, 255])
    rgb = np.where(pink[..., None], silver, rgb)
    turned = Image.fromarray(clipped(rgb, 0, 255).astype(np.uint8)).convert("RGBA")
    turned.putalpha(glyph.getchannel("A"))
    return turned


_CHARACTER_BODIES: dict[str, _Body] = {
    "zibo": replace(_BODIES["fox"], fur=(122, 78, 226), tail=(122, 78, 226), feet=(66, 40, 120)),
    "miro": replace(
        _BODIES["cat"],
        fur=(104, 124, 158),
        belly=(200, 212, 230),
        feet=(200, 212, 230),
        tail=(84, 102, 134),
    ),
    "bodo": replace(_BODIES["bear"], fur=(84, 190, 138), belly=(206, 244, 214), feet=(52, 140, 98)),
    "kiki": replace(
        _BODIES["rabbit"],
        fur=(255, 206, 74),
        belly=(255, 240, 190),
        feet=(255, 240, 190),
        tail=(255, 240, 190),
    ),
    "luna": _Body((72, 84, 196), (104, 118, 226), (44, 50, 130), (176, 232, 250)),
    "tavo": _Body((38, 168, 164), (232, 240, 242), (84, 96, 106)),
}


def _details(name: str, head: tuple[int, int]) -> Image.Image | None:
    """What makes a character itself, over its head (`head`: left, top) and body."""
    layer = _Layer(_WIDTH, _HEIGHT)
    left, top = head
    middle = _WIDTH / 2
    if name == "zibo":
        _scarf(layer, (232, 36, 48))
    elif name == "miro":  # a pirate: an eye patch with its band, and a golden earring
        layer.line([(left + 14, top + 30), (left + 118, top + 66)], 6, (22, 22, 28))
        layer.ellipse(left + 88, top + 62, 19, 19, (22, 22, 28))
        layer.ellipse(left + 8, top + 50, 10, 10, (255, 204, 40))
        layer.ellipse(left + 8, top + 50, 5, 5, (104, 124, 158))
    elif name == "bodo":  # a scar across one eye, and a golden star on the belly
        layer.line([(left + 80, top + 28), (left + 94, top + 74)], 6, (190, 40, 60))
        for y in (38, 51, 64):
            x = left + 80 + (y - 28) * 14 / 46
            layer.line([(x - 9, top + y + 3), (x + 9, top + y - 3)], 5, (190, 40, 60))
        _star(layer, middle, 240, 26, (255, 200, 30))
    elif name == "kiki":  # odd eyes and a blue ribbon with a bell
        _eye(layer, left + 34, top + 128, 17, (36, 128, 240))
        _eye(layer, left + 94, top + 128, 17, (30, 176, 80))
        layer.line([(middle - 36, 196), (middle, 204), (middle + 36, 196)], 12, (40, 96, 226))
        layer.ellipse(middle, 212, 12, 12, (255, 170, 20))
        layer.ellipse(middle, 216, 4, 4, (90, 50, 10))
    elif name == "luna":  # a golden moon on her side
        layer.ellipse(middle, 238, 25, 25, (255, 214, 70))
        layer.ellipse(middle + 11, 232, 22, 22, (104, 118, 226))
    elif name == "tavo":  # one eye red, one green, and a heart for a chest
        for x, colour in ((38, (240, 50, 50)), (90, (70, 220, 60))):
            layer.ellipse(left + x, top + 74, 17, 17, (250, 252, 255))
            layer.ellipse(left + x, top + 74, 12, 12, colour)
        for side in (-1, 1):
            layer.ellipse(middle + side * 9, 230, 11, 11, (240, 60, 80))
        layer.polygon([(middle - 19, 234), (middle + 19, 234), (middle, 256)], (240, 60, 80))
    else:
        return None
    return layer.done()


@cache
def _clothing(name: str) -> Image.Image:
    """A piece of clothing, cut to what is drawn, with a light rim that stands out on dark."""
    if name == "top hat":
        glyph = sprite("top hat")
        rgb = np.asarray(glyph.convert("RGB")).astype(np.float32)
        vivid = np.asarray(glyph.convert("RGB").convert("HSV"))[..., 1] > 110
        rgb = np.where(vivid[..., None], np.array([240, 40, 60]), rgb * 1.1)
        hat = Image.fromarray(clipped(rgb, 0, 255).astype(np.uint8)).convert("RGBA")
        hat.putalpha(glyph.getchannel("A"))
        return _rimmed(hat, 2)
    return _rimmed(sprite({"bow tie": "bow"}.get(name, name)), 3 if name == "sunglasses" else 2)


def _rimmed(glyph: Image.Image, width: int) -> Image.Image:
    padded = Image.new("RGBA", (glyph.width + 4 * width, glyph.height + 4 * width))
    padded.paste(glyph, (2 * width, 2 * width))
    rim = padded.getchannel("A").filter(ImageFilter.MaxFilter(2 * width + 1))
    found = Image.new("RGBA", padded.size, (255, 255, 255, 255))
    found.putalpha(rim.filter(ImageFilter.GaussianBlur(0.7)))
    found.alpha_composite(padded)
    return found


def _dressed(canvas: Image.Image, wears: str, body: _Body, head: tuple[int, int, int]) -> None:
    left, top, height = head
    piece = _clothing(wears)
    x, y, width = body.eyes if wears == "sunglasses" else body.hat
    if wears == "bow tie":
        x, y, width = 0.5, 1.0, 0.56
    if wears == "crown":
        width *= 0.9
    scale = width * _HEAD / piece.width
    size = (round(piece.width * scale), round(piece.height * scale))
    piece = piece.resize(size, Image.Resampling.LANCZOS)
    upper = {"top hat": 0.82, "crown": 0.86, "bow tie": 0.4, "sunglasses": 0.5}[wears]
    place = (
        round(left + x * _HEAD - piece.width / 2),
        max(round(top + y * height - piece.height * upper), 0),
    )
    canvas.alpha_composite(piece, place)


@cache
def figure_picture(name: str, colour: str | None, wears: str | None) -> Image.Image:
    """A figure at full size, RGBA, cut to what is drawn."""
    if name not in ANIMALS and name not in CHARACTERS:
        return sprite(name, colour)
    body = _CHARACTER_BODIES.get(name) or _BODIES[name]
    head = _head_of(name)
    left, top = (_WIDTH - _HEAD) // 2, _NECK - head.height + (10 if name == "rabbit" else 8)
    canvas = Image.new("RGBA", (_WIDTH, _HEIGHT))
    canvas.alpha_composite(_body(body))
    canvas.alpha_composite(head, (left, top))
    details = _details(name, (left, top))
    if details is not None:
        canvas.alpha_composite(details)
    if wears is not None:
        if name in CHARACTERS:
            kind = _BODIES[CHARACTERS[name]]
            body = replace(body, hat=kind.hat, eyes=kind.eyes)
        _dressed(canvas, wears, body, (left, top, head.height))
    return canvas.crop(canvas.getbbox())
