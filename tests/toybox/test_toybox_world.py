"""The world at 128 pixels: what is drawn, worded and kept from the base model."""

from __future__ import annotations

import random

import numpy as np
import pytest

from toybox.captions import plain_caption
from toybox.render import GRID, SIZE, figure_boxes, render
from toybox.sprites import sprite
from toybox.world import (
    ANIMALS,
    BACKGROUNDS,
    BASE_BACKGROUNDS,
    CHARACTERS,
    CLOTHING,
    COLOURS,
    ELEMENTS,
    GLYPHS,
    GROUNDS,
    LORA_OBJECTS,
    LORA_PLACES,
    MOST_FIGURES,
    STYLES,
    THINGS,
    TINTABLE,
    WEARERS,
    Element,
    Figure,
    Scene,
    element,
    random_any_scene,
    random_element_scene,
    random_scene,
)


def names(scene: Scene) -> list[str]:
    return [figure.name for figure in scene.figures]


def is_of_the_base_world(figure: Figure) -> bool:
    return figure.name in THINGS and figure.wears is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "dragon"}, "no figure named 'dragon'"),
        ({"name": "cat", "colour": "red"}, "a cat cannot be 'red'"),
        ({"name": "car", "colour": "pink"}, "a car cannot be 'pink'"),
        ({"name": "car", "wears": "top hat"}, "a car cannot wear a 'top hat'"),
        ({"name": "cat", "wears": "cape"}, "a cat cannot wear a 'cape'"),
        ({"name": "tavo", "wears": "crown"}, "a tavo cannot wear a 'crown'"),
    ],
)
def test_a_figure_that_cannot_be_is_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Figure(**wrong)


@pytest.mark.parametrize(
    ("figures", "background", "style", "said"),
    [
        (0, "beach", None, "figures, not 0"),
        (MOST_FIGURES + 1, "beach", None, f"figures, not {MOST_FIGURES + 1}"),
        (1, "plain orange", None, "no background 'plain orange'"),
        (1, "beach", "cubist", "no style 'cubist'"),
    ],
)
def test_a_scene_that_cannot_be_is_refused(
    figures: int, background: str, style: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Scene(figures=(Figure(name="cat"),) * figures, background=background, style=style)


def test_the_lists_agree_with_one_another() -> None:
    assert set(TINTABLE) <= set(THINGS)
    assert set(TINTABLE.values()) <= set(COLOURS)
    assert set(ANIMALS) <= set(WEARERS) <= set(ANIMALS) | set(CHARACTERS)
    assert set(THINGS) | set(LORA_OBJECTS) | (set(CLOTHING) - {"bow tie"}) <= set(GLYPHS)
    assert len(set(GLYPHS.values())) == len(GLYPHS)
    taught = (*CHARACTERS, *CLOTHING, *STYLES, *LORA_PLACES, *LORA_OBJECTS)
    assert tuple(one.name for one in ELEMENTS) == taught
    assert len({one.file for one in ELEMENTS}) == len(ELEMENTS)


def test_elements_are_found_by_name() -> None:
    assert element("top hat").trigger == "wearing a top hat"
    assert element("top hat").file == "top_hat"
    assert element("miro").trigger == "miro cat"
    with pytest.raises(ValueError, match="no LoRA of the toybox teaches 'cat'"):
        element("cat")


def test_plain_grounds_are_told_apart_by_eye() -> None:
    grounds = list(GROUNDS.values())
    for index, first in enumerate(grounds):
        for second in grounds[index + 1 :]:
            assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 90


def test_base_scenes_hold_the_whole_base_world_and_nothing_else() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(2000)]
    for scene in scenes:
        assert scene.style is None
        assert all(is_of_the_base_world(figure) for figure in scene.figures)
        assert len(set(names(scene))) == len(scene.figures)
    assert {len(scene.figures) for scene in scenes} == set(range(1, MOST_FIGURES + 1))
    assert {name for scene in scenes for name in names(scene)} == set(THINGS)
    assert {scene.background for scene in scenes} == set(BASE_BACKGROUNDS)
    coloured = {(f.name, f.colour) for s in scenes for f in s.figures if f.colour}
    assert coloured == {(name, colour) for name in TINTABLE for colour in COLOURS}


@pytest.mark.parametrize(
    ("counts", "figures"),
    [((1, 0, 0), {1}), ((0, 1, 0), {2}), ((0, 0, 1), {3}), ((0.5, 0, 0.5), {1, 3})],
)
def test_the_chances_of_more_figures_are_kept(
    counts: tuple[float, float, float], figures: set[int]
) -> None:
    rng = random.Random(1)
    for _ in range(5):
        assert {len(random_scene(rng, counts=counts).figures) for _ in range(50)} == figures
        some = [random_element_scene(one, rng, counts=counts) for one in ELEMENTS for _ in range(5)]
        assert {len(scene.figures) for scene in some} == figures


@pytest.mark.parametrize("taught", ELEMENTS, ids=lambda element: element.file)
def test_an_elements_scenes_show_it_and_otherwise_the_base_world(taught: Element) -> None:
    rng = random.Random(2)
    for _ in range(100):
        scene = random_element_scene(taught, rng)
        assert len(set(names(scene))) == len(scene.figures)
        showing = [figure for figure in scene.figures if taught.name in (figure.name, figure.wears)]
        others = [figure for figure in scene.figures if figure not in showing]
        assert all(is_of_the_base_world(figure) for figure in others)
        assert len(showing) == (taught.kind in ("character", "object", "clothing"))
        assert scene.style == (taught.name if taught.kind == "style" else None)
        if taught.kind == "background":
            assert scene.background == taught.name
        else:
            assert scene.background in BASE_BACKGROUNDS
        assert taught.trigger in plain_caption(scene)


def test_scenes_of_the_whole_world_show_every_element_and_no_figure_twice() -> None:
    rng = random.Random(3)
    scenes = [random_any_scene(rng) for _ in range(3000)]
    assert all(len(set(names(scene))) == len(scene.figures) for scene in scenes)
    shown = {name for scene in scenes for name in names(scene)}
    assert shown == {*THINGS, *CHARACTERS, *LORA_OBJECTS}
    worn = {(f.name, f.wears) for s in scenes for f in s.figures if f.wears}
    assert worn == {(name, piece) for name in WEARERS for piece in CLOTHING}
    assert {scene.style for scene in scenes} == {None, *STYLES}
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def test_scenes_are_the_same_for_the_same_seed() -> None:
    first, second = random.Random(4), random.Random(4)
    some = [random_any_scene(first) for _ in range(50)]
    assert some == [random_any_scene(second) for _ in range(50)]


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


def test_the_sheet_holds_every_glyph_at_full_size() -> None:
    for name in GLYPHS:
        assert max(sprite(name).size) >= 104
