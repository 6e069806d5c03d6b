"""Pictures are deterministic, 64 px, and show figures where the scene says."""

from __future__ import annotations

import hashlib
import json
import random

import numpy as np
import pytest
from PIL import Image

from toybox.backgrounds import draw_background
from toybox.render import SIZE, render
from toybox.sprites import CELL, COLUMNS, SHEET, figure_sprite, sprite
from toybox.styles import PIXEL
from toybox.world import (
    BACKGROUNDS,
    CLOTHING,
    COLOURS,
    GLYPHS,
    STYLES,
    TINTABLE,
    WEARERS,
    Figure,
    Scene,
    random_any_scene,
)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(np.int16)


def test_the_sheet_holds_every_glyph_of_the_world_with_its_licence() -> None:
    layout = json.loads(SHEET.with_suffix(".json").read_text())
    assert layout == {"cell": CELL, "columns": COLUMNS, "names": list(GLYPHS)}
    with Image.open(SHEET) as sheet:
        assert sheet.size == (COLUMNS * CELL, -(-len(GLYPHS) // COLUMNS) * CELL)
    licence = (SHEET.parent / "OFL.txt").read_text()
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence


def test_no_two_glyphs_look_alike() -> None:
    small = {}
    for name in GLYPHS:
        image = sprite(name)
        assert image.size == (CELL, CELL)
        assert np.asarray(image.getchannel("A")).mean() > 20, name
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image)
        small[name] = pixels(on_white.resize((24, 24), Image.Resampling.BOX))
    listed = list(small)
    for index, first in enumerate(listed):
        for second in listed[index + 1 :]:
            assert np.abs(small[first] - small[second]).mean() > 8, (first, second)


@pytest.mark.parametrize("name", TINTABLE)
def test_each_colour_of_a_thing_is_seen(name: str) -> None:
    def mean(colour: str) -> np.ndarray:
        image = figure_sprite(name, colour, None, 41)
        return pixels(image)[np.asarray(image.getchannel("A")) > 200].mean(0)

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
def test_clothing_is_seen_on_every_wearer(name: str, wears: str) -> None:
    bare, dressed = (np.asarray(figure_sprite(name, None, w, 30)) for w in (None, wears))
    assert bare.shape == dressed.shape
    assert (np.abs(bare.astype(int) - dressed).max(2) > 60).sum() >= 12


def test_a_picture_is_the_same_for_the_same_seed_and_varies_with_it() -> None:
    scene = Scene(figures=(Figure(name="cat"), Figure(name="car")), background="city")
    drawn = [render(scene, random.Random(seed)) for seed in (0, 0, 1, 2)]
    assert all(image.size == (SIZE, SIZE) and image.mode == "RGB" for image in drawn)
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in drawn]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_every_kind_of_scene_can_be_drawn() -> None:
    rng = random.Random(7)
    for _ in range(150):
        image = render(random_any_scene(rng), rng)
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert pixels(image).std() > 2


@pytest.mark.parametrize("left", ["red", "blue"])
def test_the_first_figure_is_on_the_left(left: str) -> None:
    right = "blue" if left == "red" else "red"
    scene = Scene(
        figures=(Figure(name="balloon", colour=left), Figure(name="heart", colour=right)),
        background="plain white",
    )
    for seed in range(20):
        redness = pixels(render(scene, random.Random(seed)))
        redness = redness[..., 0] - redness[..., 2]
        halves = redness[:, :32].sum(), redness[:, 32:].sum()
        assert (halves[0] > halves[1]) == (left == "red")


def test_figures_lie_within_the_picture() -> None:
    scene = Scene(figures=(Figure(name="cat", wears="top hat"),), background="plain green")
    for seed in range(30):
        rng = random.Random(seed)
        empty = pixels(draw_background("plain green", SIZE, random.Random(seed)))
        drawn = np.abs(pixels(render(scene, rng)) - empty).max(2) > 30
        assert drawn.sum() > 400
        assert not drawn[-1].any()
        assert not drawn[:, 0].any()
        assert not drawn[:, -1].any()


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_vary_and_leave_their_stored_variants_alone(name: str) -> None:
    first = draw_background(name, SIZE, random.Random(0))
    kept = first.tobytes()
    first.paste((1, 2, 3), (0, 0, SIZE, SIZE))
    assert draw_background(name, SIZE, random.Random(0)).tobytes() == kept
    drawn = {draw_background(name, SIZE, random.Random(seed)).tobytes() for seed in range(12)}
    assert len(drawn) >= 4


@pytest.mark.parametrize("style", STYLES)
def test_a_style_changes_the_whole_picture(style: str) -> None:
    figures = (Figure(name="fox"), Figure(name="house"))
    plain = render(Scene(figures=figures, background="meadow"), random.Random(3))
    styled = render(Scene(figures=figures, background="meadow", style=style), random.Random(3))
    assert np.abs(pixels(plain) - pixels(styled)).mean() > 5
    if style == "pixel art":
        squares = pixels(styled).reshape(SIZE // PIXEL, PIXEL, SIZE // PIXEL, PIXEL, 3)
        assert np.array_equal(squares, np.broadcast_to(squares[:, :1, :, :1], squares.shape))
    if style == "pencil sketch":
        # colours fade, as if drawn with coloured pencils on paper
        vivid, faded = (np.ptp(pixels(image), axis=2).mean() for image in (plain, styled))
        assert faded < vivid / 2
    if style == "neon":
        # grounds grow dark, outlines glow
        assert np.median(pixels(styled).max(2)) < 0.65 * np.median(pixels(plain).max(2))
        assert pixels(styled).max() > 240
