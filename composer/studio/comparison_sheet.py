"""A comparison as one picture: every way a column, every seed a row, each with its label."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from composer.studio.comparing import Way

if TYPE_CHECKING:
    from composer.studio.history import SavedPicture

SIDE = 256  # of one picture, in pixels
COLUMN = 38  # letters of a caption that fit under one, about
LETTER = 10  # width of a letter of the title, about


def comparison_sheet(
    ways: Sequence[Way], pictures: Mapping[tuple[int, int], SavedPicture]
) -> Image.Image:
    """The pictures by the numbers of their way and seed; one that is missing leaves its place."""
    from composer.evaluation.sheets import Cell, contact_sheet

    request = ways[0].asked.request
    cells: list[Cell] = []
    for seed in range(request.count):
        for number, way in enumerate(ways):
            saved = pictures.get((number, seed))
            lines = (way.title, way.detail, f"seed {request.seed_of(seed)}")
            caption = "\n".join(part for line in lines for part in textwrap.wrap(line, COLUMN))
            cells.append(Cell(image=saved.image() if saved else None, caption=caption))
    title = textwrap.shorten(request.prompt, len(ways) * SIDE // LETTER, placeholder=" ...")
    return contact_sheet(cells, columns=len(ways), side=SIDE, title=title)
