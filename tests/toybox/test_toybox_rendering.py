"""Pictures show their figures where the scene says, and everything on them can be told apart."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from PIL import Image

from toybox.backgrounds import draw_background
from toybox.figures import figure_picture
from toybox.render import GRID, SIZE, figure_boxes, render
from toybox.sprites import CELL, COLUMNS, SHEET, sprite
from toybox.styles import PIXEL
from toybox.world import (
    ANIMALS,
    BACKGROUNDS,
    CHARACTERS,
    CLOTHING,
    COLOURS,
    GLYPHS,
    LORA_OBJECTS,
    MOST_FIGURES,
    STYLES,
    THINGS,
    TINTABLE,
    WEARERS,
    Figure,
    Scene,
    random_any_scene,
)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(np.int16)


def on_white(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return pixels(white.resize(size, Image.Resampling.BOX))


def test_the_sheet_holds_every_glyph_of_the_world_with_its_licence() -> None:
    layout = json.loads(SHEET.with_suffix(".json").read_text())
    assert layout == {"cell": CELL, "columns": COLUMNS, "names": list(GLYPHS)}
    with Image.open(SHEET) as sheet:
        assert sheet.size == (COLUMNS * CELL, -(-len(GLYPHS) // COLUMNS) * CELL)
    licence = (SHEET.parent / "OFL.txt").read_text()
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence


def test_no_two_figures_look_alike() -> None:
    names = (*THINGS, *CHARACTERS, *LORA_OBJECTS)
    small = {name: on_white(figure_picture(name, None, None), (24, 24)) for name in names}
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            assert np.abs(small[first] - small[second]).mean() > 16, (first, second)


@pytest.mark.parametrize("name", TINTABLE)
def test_each_colour_of_a_thing_is_the_one_that_is_said(name: str) -> None:
    def mean(colour: str) -> np.ndarray:
        picture = sprite(name, colour)
        seen = np.asarray(picture.getchannel("A")) > 200
        # what keeps its own colour, a stem or a tyre, is not asked
        return pixels(picture)[seen & (np.ptp(pixels(picture), axis=2) > 60)].mean(0)

    means = {colour: mean(colour) for colour in COLOURS}
    red, green, blue = 0, 1, 2
    assert means["red"].argmax() == red
    assert means["green"].argmax() == green
    assert means["blue"].argmax() == blue
    assert means["yellow"][red] > means["yellow"][blue] + 60
    assert means["purple"][blue] > means["purple"][green] + 40
    for colour in COLOURS:
        for other in COLOURS:
            if colour != other:
                assert np.abs(means[colour] - means[other]).max() > 35, (colour, other)


@pytest.mark.parametrize("wears", CLOTHING)
@pytest.mark.parametrize("name", WEARERS)
def test_clothing_is_seen_on_every_wearer_at_every_size(name: str, wears: str) -> None:
    for count in range(1, MOST_FIGURES + 1):
        others = tuple(Figure(name=other) for other in ("car", "tree")[: count - 1])
        drawn = [
            pixels(
                render(
                    Scene(figures=(Figure(name=name, wears=w), *others), background="plain white"),
                    random.Random(0),
                )
            )
            for w in (None, wears)
        ]
        assert (np.abs(drawn[0] - drawn[1]).max(2) > 60).sum() >= 60, count


def test_a_picture_varies_with_its_random_state() -> None:
    scene = Scene(figures=(Figure(name="cat"), Figure(name="car")), background="city")
    assert len({render(scene, random.Random(seed)).tobytes() for seed in range(3)}) == 3


def test_every_kind_of_scene_can_be_drawn() -> None:
    rng = random.Random(7)
    for _ in range(100):
        image = render(random_any_scene(rng), rng)
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
        assert pixels(image).std() > 2


@pytest.mark.parametrize("count", range(2, MOST_FIGURES + 1))
def test_figures_stand_from_left_to_right(count: int) -> None:
    colours = ("red", "green", "blue")
    for turn in range(count):
        order = (*range(turn, count), *range(turn))
        scene = Scene(
            figures=tuple(
                Figure(name=("balloon", "car", "heart")[i], colour=colours[i]) for i in order
            ),
            background="plain white",
        )
        for seed in range(5):
            picture = pixels(render(scene, random.Random(seed)))
            # how much each channel stands out, in each column of the picture
            vivid = (picture - picture.min(2, keepdims=True)).sum(0)
            for place, (left, _, right, _) in enumerate(figure_boxes(count)):
                assert vivid[left:right].sum(0).argmax() == order[place]


def test_figures_stand_in_the_middle_and_on_the_ground() -> None:
    scene = Scene(figures=(Figure(name="cat", wears="top hat"),), background="plain green")
    (box,) = figure_boxes(1)
    for seed in range(20):
        # the first number that is drawn is the variant of the background
        empty = pixels(draw_background("plain green", SIZE, random.Random(seed)).behind)
        drawn = np.abs(pixels(render(scene, random.Random(seed))) - empty).max(2) > 40
        rows, columns = drawn.any(1).nonzero()[0], drawn.any(0).nonzero()[0]
        assert drawn.sum() > 1600
        assert columns[0] >= box[0] - GRID and columns[-1] < box[2] + GRID
        assert box[3] - 2 * GRID <= rows[-1] < SIZE - 1


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_vary_and_their_stored_variants_are_left_alone(name: str) -> None:
    kept = draw_background(name, SIZE, random.Random(0)).behind.tobytes()
    render(Scene(figures=(Figure(name="cat"),), background=name), random.Random(0))
    assert draw_background(name, SIZE, random.Random(0)).behind.tobytes() == kept
    some = {draw_background(name, SIZE, random.Random(n)).behind.tobytes() for n in range(6)}
    assert len(some) >= 3


@pytest.mark.parametrize("style", STYLES)
def test_a_style_changes_the_whole_picture(style: str) -> None:
    figures = (Figure(name="fox"), Figure(name="house"))
    plain, styled = (
        pixels(render(Scene(figures=figures, background="meadow", style=chosen), random.Random(3)))
        for chosen in (None, style)
    )
    changed = np.abs(plain - styled).reshape(4, SIZE // 4, 4, SIZE // 4, 3).mean((1, 3, 4))
    assert changed.min() > 8  # in each sixteenth of it
    if style == "pixel art":
        squares = styled.reshape(SIZE // PIXEL, PIXEL, SIZE // PIXEL, PIXEL, 3)
        assert np.array_equal(squares, np.broadcast_to(squares[:, :1, :, :1], squares.shape))
        assert GRID % PIXEL == 0
    if style == "pencil sketch":
        assert np.ptp(styled, axis=2).mean() < np.ptp(plain, axis=2).mean() / 4
    if style == "neon":
        # grounds grow dark, outlines glow
        assert np.median(styled.max(2)) < 0.65 * np.median(plain.max(2))
        assert styled.max() > 240
    if style == "stained glass":
        # lead between the panes
        assert (styled.max(2) < 60).mean() > (plain.max(2) < 60).mean() + 0.05


def test_animals_have_bodies_and_things_have_none() -> None:
    for name in THINGS:
        drawn, glyph = figure_picture(name, None, None), sprite(name)
        assert (drawn.height > 1.5 * glyph.height) == (name in ANIMALS), name
