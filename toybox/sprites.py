"""The sprite sheet: the toybox's glyphs, cut once from Noto Color Emoji (SIL OFL 1.1).

The sheet lies in `assets/sprites/`, so nothing needs the font afterwards; `build_sheet` makes it
again from an installed font.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from composer.errors import ComposerError
from toybox.world import GLYPHS

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SHEET = ASSETS / "sprites" / "noto_sprites.png"
CELL = 96
COLUMNS = 8

_FONT_SIZE = 109  # the one size of Noto Color Emoji's bitmaps


def build_sheet(font: Path, sheet: Path = SHEET) -> None:
    """Cut every glyph of the world from `font` into square RGBA cells of 96 px."""
    face = ImageFont.truetype(str(font), _FONT_SIZE)
    rows = -(-len(GLYPHS) // COLUMNS)
    image = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, glyph in enumerate(GLYPHS.values()):
        canvas = Image.new("RGBA", (192, 192))
        ImageDraw.Draw(canvas).text((24, 24), glyph, font=face, embedded_color=True)
        box = canvas.getbbox()
        if box is None:
            raise ComposerError(f"{font} has no colour glyph {glyph}: use Noto Color Emoji.")
        cut = canvas.crop(box)
        cut.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        left = index % COLUMNS * CELL + (CELL - cut.width) // 2
        top = index // COLUMNS * CELL + (CELL - cut.height) // 2
        image.paste(cut, (left, top))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    image.save(sheet, optimize=True)
    sheet.with_suffix(".json").write_text(
        json.dumps({"cell": CELL, "columns": COLUMNS, "names": list(GLYPHS)}, indent=1) + "\n"
    )


@lru_cache(maxsize=1)
def _sheet() -> dict[str, Image.Image]:
    layout = json.loads(SHEET.with_suffix(".json").read_text())
    image = Image.open(SHEET).convert("RGBA")
    cell, columns = layout["cell"], layout["columns"]
    return {
        name: image.crop(
            (
                i % columns * cell,
                i // columns * cell,
                i % columns * cell + cell,
                i // columns * cell + cell,
            )
        )
        for i, name in enumerate(layout["names"])
    }


_HUES = {"red": 2, "yellow": 49, "green": 122, "blue": 214, "purple": 276}


@cache
def sprite(name: str, colour: str | None = None) -> Image.Image:
    """The glyph `name`, square RGBA of 96 px, its saturated pixels turned to `colour`."""
    image = _sheet()[name]
    return image if colour is None else _tinted(image, _HUES[colour])


def _tinted(image: Image.Image, hue: int) -> Image.Image:
    """Every pixel with a colour of its own moved to `hue` degrees, made as vivid as that hue is."""
    alpha = image.getchannel("A")
    hsv = np.asarray(image.convert("RGB").convert("HSV")).astype(np.float32)
    coloured = hsv[..., 1] > 70
    hsv[..., 0] = np.where(coloured, hue / 360 * 255, hsv[..., 0])
    bright = 1.12 if hue < 60 and hue > 30 else 1.0
    dim = 0.86 if hue == _HUES["green"] else 1.0
    hsv[..., 2] = np.where(coloured, np.minimum(hsv[..., 2] * bright * dim, 255), hsv[..., 2])
    hsv[..., 1] = np.where(
        coloured, np.minimum(np.maximum(hsv[..., 1] * 1.05, 170), 255), hsv[..., 1]
    )
    tinted = Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB").convert("RGBA")
    tinted.putalpha(alpha)
    return tinted


# Where clothing sits on a wearer's glyph, in parts of the cell: (centre x, y, width).
_HEAD = {
    "cat": (0.5, 0.10, 0.62),
    "dog": (0.5, 0.06, 0.60),
    "fox": (0.5, 0.12, 0.56),
    "panda": (0.5, 0.08, 0.60),
    "frog": (0.5, 0.16, 0.60),
    "pig": (0.5, 0.10, 0.60),
    "penguin": (0.38, 0.05, 0.46),
    "owl": (0.5, 0.05, 0.50),
    "rabbit": (0.5, 0.40, 0.50),
}
_EYES = {
    "cat": (0.5, 0.47, 0.98),
    "dog": (0.5, 0.38, 0.81),
    "fox": (0.5, 0.53, 0.88),
    "panda": (0.5, 0.46, 0.93),
    "frog": (0.5, 0.22, 1.00),
    "pig": (0.5, 0.36, 0.88),
    "penguin": (0.40, 0.16, 0.56),
    "owl": (0.5, 0.24, 0.81),
    "rabbit": (0.5, 0.63, 0.73),
}


@cache
def figure_sprite(name: str, colour: str | None, wears: str | None, size: int) -> Image.Image:
    """A figure at `size` px (the glyph's own height), RGBA; clothing may reach beyond its top."""
    top = CELL * 3 // 8  # room above the head for a hat
    canvas = Image.new("RGBA", (CELL, CELL + top))
    if name == "zibo":
        canvas.alpha_composite(_zibo(), (0, top))
    else:
        glyph = {"tavo": "robot", "luna": "unicorn"}.get(name, name)
        canvas.alpha_composite(sprite(glyph, colour), (0, top))
    if wears is not None:
        x, y, width = (_HEAD if wears == "top hat" else _EYES)[name]
        piece = _clothing(wears)
        scale = width * CELL / piece.width
        piece = piece.resize(
            (round(piece.width * scale), round(piece.height * scale)), Image.Resampling.LANCZOS
        )
        left = round(x * CELL - piece.width / 2)
        middle = top + y * CELL
        # a hat stands on its brim, glasses are centred on the eyes
        upper = middle - piece.height * (0.86 if wears == "top hat" else 0.5)
        canvas.alpha_composite(piece, (max(left, 0), max(round(upper), 0)))
    height = round(size * (CELL + top) / CELL)
    return canvas.resize((size, height), Image.Resampling.LANCZOS)


@cache
def _clothing(name: str) -> Image.Image:
    """A piece of clothing, cropped: in colours that stand out on every animal and every ground."""
    glyph = sprite(name)
    if name == "top hat":
        # what is dark becomes magenta; the band keeps its own colour
        hsv = np.array(glyph.convert("RGB").convert("HSV")).astype(np.float32)
        dark = hsv[..., 2] < 130
        hsv[..., 0] = np.where(dark, 228, 34)
        hsv[..., 1] = np.where(dark, 225, 230)
        hsv[..., 2] = np.where(dark, np.minimum(130 + hsv[..., 2], 255), 255)
        hat = Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB").convert("RGBA")
        hat.putalpha(glyph.getchannel("A"))
        return hat.crop(hat.getbbox())
    rim = ImageOps.expand(glyph.getchannel("A"), 8).filter(ImageFilter.MaxFilter(9))
    glasses = Image.new("RGBA", rim.size, (255, 255, 255, 255))
    glasses.putalpha(rim)
    glasses.alpha_composite(ImageOps.expand(glyph, 8))
    return glasses.crop(glasses.getbbox())


def _zibo() -> Image.Image:
    """Zibo: a violet fox with a pink bow at its left ear."""
    fox = _tinted(sprite("fox"), 268)
    bow = sprite("bow").resize((46, 46), Image.Resampling.LANCZOS)
    fox = fox.copy()
    fox.alpha_composite(bow, (0, 2))
    return fox
