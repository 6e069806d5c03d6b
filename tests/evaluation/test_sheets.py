from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from composer.evaluation.sheets import RIGHT, WRONG, Cell, contact_sheet


def picture(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (16, 16), colour)


def test_a_grid_of_enlarged_pictures_with_captions() -> None:
    cells = [Cell(image=picture((200, 30 * i, 0)), caption=f"picture {i}") for i in range(5)]
    sheet = contact_sheet(cells, columns=3, side=96, title="Five pictures")
    assert sheet.width == 8 + 3 * 104
    pixels = np.asarray(sheet)
    for i in range(5):
        here = (pixels == (200, 30 * i, 0)).all(-1)
        assert here.sum() == 96 * 96
        rows, columns = np.nonzero(here)
        assert columns.min() == 8 + (i % 3) * 104
        below = pixels[rows.max() + 6 : rows.max() + 22, columns.min() : columns.max()]
        assert below.min() < 150  # the caption's ink
    assert (pixels[:30] < 100).any()  # the title


def test_right_and_wrong_differ_without_colour() -> None:
    right, wrong = (
        contact_sheet([Cell(image=picture((0, 0, 0)), right=verdict)], columns=1, side=120)
        for verdict in (True, False)
    )
    full = (np.asarray(right) == RIGHT).all(-1).sum()
    broken = (np.asarray(wrong) == WRONG).all(-1).sum()
    assert full == 120 * 3 and 0.4 * full < broken < 0.7 * full


def test_long_captions_stay_in_their_column_and_make_room() -> None:
    long = "a very long caption that goes on over several lines of text"
    one, two = (
        contact_sheet([Cell(image=None, caption=text)] * 2, columns=2, side=96)
        for text in ("short", long)
    )
    assert two.height > one.height + 30
    assert (np.asarray(two)[:, 105:110] > 240).all()  # the gap between columns


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one cell"):
        contact_sheet([], columns=2)
