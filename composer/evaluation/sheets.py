"""Contact sheets: a grid of small pictures, enlarged, each with a caption a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

GAP = 8
LINE = 15
TEXT_SIZE = 12
TITLE_SIZE = 18
PAPER, INK, PALE = (255, 255, 255), (28, 28, 32), (104, 106, 114)
RIGHT, WRONG = (38, 150, 84), (206, 58, 52)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A picture (None leaves its place empty), its caption, and whether it was found right.

    A cell that was judged has a bar under its picture: whole for right, broken for wrong, so that
    it can be recognised without colour.
    """

    image: Image.Image | None
    caption: str = ""
    right: bool | None = None


def contact_sheet(
    cells: Sequence[Cell],
    *,
    columns: int,
    side: int = 128,
    title: str = "",
) -> Image.Image:
    """The cells in rows of `columns`, each picture `side` pixels wide, captions below in full."""
    if not cells or columns < 1:
        raise ValueError("a contact sheet needs at least one cell and one column.")
    font, heading = _font(TEXT_SIZE), _font(TITLE_SIZE)
    captions = [_wrapped(cell.caption, side, font) for cell in cells]
    rows = [range(i, min(i + columns, len(cells))) for i in range(0, len(cells), columns)]
    # a row is as high as its longest caption
    heights = [side + 8 + LINE * max(len(captions[i]) for i in row) + GAP for row in rows]
    head = GAP + (TITLE_SIZE + 12 if title else 0)
    width = GAP + min(columns, len(cells)) * (side + GAP)
    sheet = Image.new("RGB", (width, head + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, GAP), title, INK, heading)
    top = head
    for row, height in zip(rows, heights, strict=True):
        for place, index in enumerate(row):
            left = GAP + place * (side + GAP)
            _paste(sheet, draw, cells[index], (left, top), side)
            for number, line in enumerate(captions[index]):
                draw.text((left, top + side + 7 + number * LINE), line, PALE, font)
        top += height
    return sheet


def _paste(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    cell: Cell,
    corner: tuple[int, int],
    side: int,
) -> None:
    left, top = corner
    if cell.image is not None:
        shown = cell.image.convert("RGB")
        scale = side / max(shown.size)
        size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
        sheet.paste(shown.resize(size, Image.Resampling.LANCZOS), corner)
    bar = top + side + 2
    if cell.right is True:
        draw.rectangle((left, bar, left + side - 1, bar + 2), RIGHT)
    elif cell.right is False:
        for x in range(left, left + side, 12):
            draw.rectangle((x, bar, min(x + 6, left + side - 1), bar + 2), WRONG)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same sheet on every machine."""
    return ImageFont.load_default(size)


def _wrapped(
    text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    """The text in lines no wider than `width` pixels; line breaks are kept, words never cut."""
    lines: list[str] = []
    for paragraph in text.split("\n") if text else []:
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
