"""The sprite sheet: the world's glyphs, cut once from Noto Color Emoji (SIL OFL 1.1).

The sheet lies in `assets/sprites/`, so nothing needs the font afterwards;
`python -m toybox.sprites NotoColorEmoji.ttf` makes it again from an installed font.
"""

from __future__ import annotations

import json
import sys
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from toybox.arrays import clipped
from toybox.world import GLYPHS

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SHEET = ASSETS / "sprites" / "noto_sprites.png"
COLUMNS = 8
CELL = 128
"""Side of a cell in pixels: the height of the font's one size of bitmaps."""

_FONT_SIZE = 109  # the one size of Noto Color Emoji's bitmaps


def build_sheet(font: Path, sheet: Path = SHEET) -> None:
    """Cut every glyph of the world from `font` into square RGBA cells, none of them reduced."""
    face = ImageFont.truetype(str(font), _FONT_SIZE)
    rows = -(-len(GLYPHS) // COLUMNS)
    image = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, (name, glyph) in enumerate(GLYPHS.items()):
        canvas = Image.new("RGBA", (192, 192))
        ImageDraw.Draw(canvas).text((24, 24), glyph, font=face, embedded_color=True)
        box = canvas.getbbox()
        if box is None:
            raise ValueError(f"{font} has no colour glyph for {name}: use Noto Color Emoji.")
        cut = canvas.crop(box)
        cut.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        left = index % COLUMNS * CELL + (CELL - cut.width) // 2
        top = index // COLUMNS * CELL + CELL - cut.height  # it stands on the cell's lower edge
        image.paste(cut, (left, top))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    image.save(sheet, optimize=True)
    layout = {"cell": CELL, "columns": COLUMNS, "names": list(GLYPHS)}
    sheet.with_suffix(".json").write_text(json.dumps(layout, indent=1) + "\n")


@lru_cache(maxsize=1)
def _sheet() -> dict[str, Image.Image]:
    layout = json.loads(SHEET.with_suffix(".json").read_text())
    image = Image.open(SHEET).convert("RGBA")
    cell, columns = layout["cell"], layout["columns"]
    found: dict[str, Image.Image] = {}
    for i, name in enumerate(layout["names"]):
        left, top = i % columns * cell, i // columns * cell
        glyph = image.crop((left, top, left + cell, top + cell))
        found[name] = glyph.crop(glyph.getbbox())
    return found


_HUES = {"red": 2, "yellow": 48, "green": 122, "blue": 214, "purple": 276}


@cache
def sprite(name: str, colour: str | None = None) -> Image.Image:
    """The glyph `name` as RGBA, cut to what is drawn; vivid pixels turned to `colour`."""
    image = _sheet()[name]
    if colour is None:
        return image
    bright = {"yellow": 1.1, "green": 0.82, "blue": 0.95}.get(colour, 1.0)
    least = 110 if name == "mushroom" else 70  # its stem keeps its colour
    return recoloured(image, _HUES[colour], least=least, bright=bright)


def recoloured(
    image: Image.Image,
    hue: float,
    *,
    least: int = 70,
    saturation: float = 165,
    most: float = 215,
    bright: float = 1.0,
) -> Image.Image:
    """Pixels more saturated than `least` turned to `hue`, kept from `saturation` to `most`."""
    hsv = np.asarray(image.convert("RGB").convert("HSV")).astype(np.float32)
    vivid = hsv[..., 1] > least
    hsv[..., 0] = np.where(vivid, hue / 360 * 255, hsv[..., 0])
    hsv[..., 1] = np.where(vivid, clipped(hsv[..., 1] * 1.05, saturation, most), hsv[..., 1])
    hsv[..., 2] = np.where(vivid, np.minimum(hsv[..., 2] * bright, 255), hsv[..., 2])
    turned = Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB").convert("RGBA")
    turned.putalpha(image.getchannel("A"))
    return turned


if __name__ == "__main__":
    build_sheet(Path(sys.argv[1]))
