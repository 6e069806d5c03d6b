"""The world at 128 pixels: what is drawn, worded and kept from the base model."""

from __future__ import annotations

import random

import numpy as np
import pytest

from toybox_128.captions import caption, plain_caption
from toybox_128.render import GRID, SIZE, figure_boxes, render
from toybox_128.sprites import sprite
from toybox_128.world import (
    BACKGROUNDS,
    CHARACTERS,
    CLOTHING,
    COLOURS,
    ELEMENTS,
    GLYPHS,
    LORA_OBJECTS,
    LORA_PLACES,
    STYLES,
    THINGS,
    TINTABLE,
    Figure,
    Scene,
    random_any_scene,
    random_element_scene,
    random_scene,
)


def test_the_base_world_shows_nothing_that_only_loras_know() -> None:
    rng = random.Random(0)
    for _ in range(500):
        scene = random_scene(rng)
        assert scene.style is None and scene.background not in LORA_PLACES
        for figure in scene.figures:
            assert figure.name in THINGS and figure.wears is None
        words = caption(scene, rng)
        for hidden in (*CHARACTERS, *CLOTHING, *STYLES, *LORA_PLACES, *LORA_OBJECTS):
            assert f" {hidden} " not in f" {words} "


@pytest.mark.parametrize("taught", ELEMENTS, ids=lambda element: element.file)
def test_an_elements_scenes_show_it_and_their_captions_hold_its_trigger(taught) -> None:
    rng = random.Random(1)
    for _ in range(20):
        scene = random_element_scene(taught, rng)
        assert taught.trigger in plain_caption(scene)
        shown = [f.name for f in scene.figures] + [f.wears for f in scene.figures]
        assert taught.name in (*shown, scene.background, scene.style)


def test_a_picture_follows_from_its_random_state_alone() -> None:
    scene = random_any_scene(random.Random(2))
    first, second = (np.asarray(render(scene, random.Random(3))) for _ in range(2))
    assert first.shape == (SIZE, SIZE, 3)
    assert np.array_equal(first, second)


def test_every_background_and_style_changes_the_picture() -> None:
    figures = (Figure(name="cat"),)
    seen: list[np.ndarray] = []
    for background in BACKGROUNDS:
        seen.append(
            np.asarray(render(Scene(figures=figures, background=background), random.Random(0)))
        )
    for style in STYLES:
        scene = Scene(figures=figures, background="meadow", style=style)
        seen.append(np.asarray(render(scene, random.Random(0))))
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert np.abs(one.astype(int) - other).mean() > 4


@pytest.mark.parametrize("name", TINTABLE)
def test_a_colour_word_colours_most_of_a_thing(name: str) -> None:
    pictures = [np.asarray(sprite(name, colour)).astype(int) for colour in COLOURS]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            changed = np.abs(one - other)[..., :3].max(-1)[one[..., 3] > 128] > 40
            assert changed.mean() > 0.35


@pytest.mark.parametrize("count", [1, 2, 3])
def test_figures_stand_in_their_boxes_from_left_to_right(count: int) -> None:
    names = ("burger", "cat", "whale")[:count]
    full = Scene(figures=tuple(Figure(name=name) for name in names), background="plain white")
    picture = np.asarray(render(full, random.Random(0))).astype(int)
    vivid = picture.max(-1) - picture.min(-1) > 60
    boxes = figure_boxes(count)
    assert [box[0] for box in boxes] == sorted(box[0] for box in boxes)
    for left, top, right, bottom in boxes:
        assert vivid[top:bottom, left:right].mean() > 0.08
        assert (right - left) % GRID == 0


def test_two_figures_of_one_scene_are_never_the_same() -> None:
    rng = random.Random(4)
    for _ in range(300):
        names = [figure.name for figure in random_any_scene(rng).figures]
        assert len(set(names)) == len(names)


def test_the_sheet_holds_every_glyph_at_full_size() -> None:
    for name in GLYPHS:
        assert max(sprite(name).size) >= 104
