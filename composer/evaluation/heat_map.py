"""A gate record as a picture that a person can read (MoLE, figure 7)."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from composer.fusions.gate_record import Floats, GateRecord, Row

CELL, HEIGHT, MARGIN, GAP = 26, 22, 14, 10
INK, FAINT, PAPER = (28, 30, 38), (120, 124, 136), (255, 255, 255)
# from paper through the accent to nearly ink: lightness falls evenly, so it prints in grey too
STOPS = np.array([(246, 247, 251), (176, 196, 246), (92, 112, 222), (36, 30, 112)], dtype=float)
PARTS = (("down_blocks", "down"), ("mid_block", "middle"), ("up_blocks", "up"))


def heat_map(record: GateRecord, row: Row = "with_prompt") -> Image.Image:
    """Units from left to right as the model runs them; above, each expert's mean share in percent
    and the entropy; below, for each expert, its share at every step, the first step on top."""
    share = record.shares(row)  # (steps, units, experts)
    steps, units, experts = share.shape
    font = ImageFont.load_default(size=12)
    small = ImageFont.load_default(size=10)
    label = max(int(font.getlength(name)) for name in (*record.experts, "entropy")) + 2 * MARGIN
    step_height = max(3, min(8, 120 // steps))
    width = label + units * CELL + MARGIN
    table = (experts + 1) * HEIGHT
    strip = steps * step_height + GAP
    height = MARGIN + 2 * HEIGHT + table + GAP + experts * strip + HEIGHT + MARGIN
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    top = MARGIN
    _groups(draw, record, label, top, font)
    top += HEIGHT
    for index in range(units):
        draw.text(
            (label + index * CELL + CELL / 2, top + HEIGHT / 2),
            str(index + 1),
            FAINT,
            small,
            anchor="mm",
        )
    top += HEIGHT
    mean: Floats = share.mean(0)  # (units, experts)
    for place, name in enumerate(record.experts):
        y = top + place * HEIGHT
        draw.text((label - MARGIN, y + HEIGHT / 2), name, INK, font, anchor="rm")
        for index in range(units):
            _cell(draw, label + index * CELL, y, float(mean[index, place]), small)
    y = top + experts * HEIGHT
    draw.text((label - MARGIN, y + HEIGHT / 2), "entropy", FAINT, font, anchor="rm")
    for index, value in enumerate(record.entropy(row)):
        where = (label + index * CELL + CELL / 2, y + HEIGHT / 2)
        draw.text(where, f"{float(value):.1f}", FAINT, small, anchor="mm")
    top = y + HEIGHT + GAP
    for place, name in enumerate(record.experts):
        colours = _colours(share[:, :, place])  # (steps, units, 3)
        strip_image = Image.fromarray(colours).resize(
            (units * CELL, steps * step_height), Image.Resampling.NEAREST
        )
        image.paste(strip_image, (label, top))
        draw.text((label - MARGIN, top + steps * step_height / 2), name, INK, font, anchor="rm")
        top += strip
    words = "share of each expert, by unit; below by step, first step on top"
    draw.text((label, top + 2), words, FAINT, small)
    return image


def _groups(
    draw: ImageDraw.ImageDraw,
    record: GateRecord,
    left: int,
    top: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Which columns are the way down, the middle and the way up."""
    for inside, words in PARTS:
        columns = [i for i, unit in enumerate(record.units) if f".{inside}" in f".{unit}"]
        if columns:
            middle = left + (columns[0] + columns[-1] + 1) / 2 * CELL
            draw.text((middle, top + HEIGHT / 2), words, INK, font, anchor="mm")
            ends = (left + columns[0] * CELL + 3, left + (columns[-1] + 1) * CELL - 3)
            draw.line([(ends[0], top + HEIGHT - 2), (ends[1], top + HEIGHT - 2)], FAINT)


def _cell(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    share: float,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    fill = _colours(np.array([[share]], dtype=np.float32))[0, 0]
    draw.rectangle((x + 1, y + 1, x + CELL - 2, y + HEIGHT - 2), tuple(int(v) for v in fill))
    ink = PAPER if share > 0.45 else INK
    draw.text((x + CELL / 2, y + HEIGHT / 2), f"{100 * share:.0f}", ink, font, anchor="mm")


def _colours(values: Floats) -> np.ndarray:
    """Shares 0 to 1 as RGB, uint8, one more axis."""
    place = np.minimum(np.maximum(values, 0.0), 1.0) * (len(STOPS) - 1)
    low = np.minimum(place.astype(int), len(STOPS) - 2)
    mix = (place - low)[..., None]
    return np.round(STOPS[low] * (1 - mix) + STOPS[low + 1] * mix).astype(np.uint8)
