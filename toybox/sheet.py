"""A sheet of scenes: `python -m toybox.sheet world.webp`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image

from toybox.render import SIZE, render
from toybox.world import (
    ANIMALS,
    CHARACTERS,
    CLOTHING,
    LORA_OBJECTS,
    LORA_PLACES,
    PLACES,
    STYLES,
    Figure,
    Scene,
    random_scene,
)

_GAP = 4


def sheet_scenes(rng: random.Random) -> list[list[Scene]]:
    """Rows of ten: the base world with one, two and three figures, then what only LoRAs know."""
    rows: list[list[Scene]] = []
    for counts in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        drawn = [random_scene(rng, counts=counts) for _ in PLACES]
        row = zip(drawn, PLACES, strict=True)
        rows.append([Scene(figures=scene.figures, background=place) for scene, place in row])
    taught = [Figure(name=name) for name in (*CHARACTERS, *LORA_OBJECTS)]
    rows.append(_alone(taught, rng.sample(PLACES, len(PLACES))))
    wearers = rng.sample(list(ANIMALS), len(ANIMALS))
    dressed = [Figure(name=n, wears=CLOTHING[i % 4]) for i, n in enumerate(wearers[:4])]
    places = _alone([Figure(name=name) for name in wearers[4:8]], LORA_PLACES)
    pair = (Figure(name="zibo"), Figure(name="tavo"))
    rows.append(
        [
            *_alone(dressed, rng.sample(PLACES, 4)),
            *places,
            *(Scene(figures=pair, background=place) for place in ("snow", "cherry blossoms")),
        ]
    )
    styled = (Figure(name="zibo"), Figure(name="cat", wears="top hat"))
    rows.append(
        [
            Scene(figures=(figure,), background=place, style=style)
            for style in STYLES
            for figure, place in zip(styled, ("beach", "meadow"), strict=True)
        ]
    )
    return rows


def _alone(figures: list[Figure], places: tuple[str, ...] | list[str]) -> list[Scene]:
    row = zip(figures, places, strict=True)
    return [Scene(figures=(figure,), background=place) for figure, place in row]


def draw_sheet(path: Path, *, seed: int = 0) -> None:
    """Draw the sheet; the suffix of `path` says in which format."""
    rng = random.Random(f"sheet {seed}")
    rows = sheet_scenes(rng)
    cell = SIZE + _GAP
    sheet = Image.new("RGB", (cell * len(rows[0]) - _GAP, cell * len(rows) - _GAP), "white")
    for y, row in enumerate(rows):
        for x, scene in enumerate(row):
            sheet.paste(render(scene, rng), (x * cell, y * cell))
    sheet.save(path, quality=88)


if __name__ == "__main__":
    draw_sheet(Path(sys.argv[1]))
