"""The world holds what it says, and refuses what it does not hold."""

from __future__ import annotations

import random

import pytest

from toybox.world import (
    BASE_BACKGROUNDS,
    CHARACTERS,
    CLOTHING,
    COLOURS,
    ELEMENTS,
    GLYPHS,
    GROUNDS,
    LORA_OBJECTS,
    LORA_PLACES,
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
        ({"name": "cat", "wears": "crown"}, "a cat cannot wear a 'crown'"),
        ({"name": "zibo", "wears": "top hat"}, "a zibo cannot wear a 'top hat'"),
    ],
)
def test_a_figure_that_cannot_be_is_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Figure(**wrong)


@pytest.mark.parametrize(
    ("figures", "background", "style", "said"),
    [
        (0, "beach", None, "one or two figures, not 0"),
        (3, "beach", None, "one or two figures, not 3"),
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
    assert set(WEARERS) <= set(THINGS)
    assert set(THINGS) | set(LORA_OBJECTS) | set(CLOTHING) <= set(GLYPHS)
    assert len(set(GLYPHS.values())) == len(GLYPHS)
    assert len(ELEMENTS) == 12
    assert len({taught.file for taught in ELEMENTS}) == 12


def test_base_scenes_hold_only_the_base_world_and_no_thing_twice() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(2000)]
    for scene in scenes:
        assert scene.style is None
        assert scene.background in BASE_BACKGROUNDS
        assert all(is_of_the_base_world(figure) for figure in scene.figures)
        assert len(set(names(scene))) == len(scene.figures)
    assert {name for scene in scenes for name in names(scene)} == set(THINGS)
    assert {scene.background for scene in scenes} == set(BASE_BACKGROUNDS)
    coloured = {(f.name, f.colour) for s in scenes for f in s.figures if f.colour}
    assert coloured == {(name, colour) for name in TINTABLE for colour in COLOURS}


@pytest.mark.parametrize(("counts", "figures"), [((1, 0), {1}), ((0, 1), {2}), ((1, 1), {1, 2})])
def test_numbers_of_figures_have_their_weights(counts: tuple[int, int], figures: set[int]) -> None:
    rng = random.Random(1)
    assert {len(random_scene(rng, counts=counts).figures) for _ in range(100)} == figures


@pytest.mark.parametrize("taught", ELEMENTS, ids=lambda taught: taught.file)
def test_an_elements_scenes_show_it_and_otherwise_the_base_world(taught: Element) -> None:
    rng = random.Random(2)
    for _ in range(200):
        scene = random_element_scene(taught, rng)
        assert len(set(names(scene))) == len(scene.figures)
        showing = [
            figure
            for figure in scene.figures
            if taught.name in (figure.name, figure.wears) and taught.kind != "style"
        ]
        others = [figure for figure in scene.figures if figure not in showing]
        assert all(is_of_the_base_world(figure) for figure in others)
        assert len(showing) == (taught.kind in ("character", "object", "clothing"))
        assert scene.style == (taught.name if taught.kind == "style" else None)
        if taught.kind == "background":
            assert scene.background == taught.name
        else:
            assert scene.background in BASE_BACKGROUNDS


def test_scenes_of_the_whole_world_show_every_element_and_no_figure_twice() -> None:
    rng = random.Random(3)
    scenes = [random_any_scene(rng) for _ in range(2000)]
    assert all(len(set(names(scene))) == len(scene.figures) for scene in scenes)
    shown = {name for scene in scenes for name in names(scene)}
    assert shown == {*THINGS, *CHARACTERS, *LORA_OBJECTS}
    assert {f.wears for s in scenes for f in s.figures} == {None, *CLOTHING}
    assert {scene.style for scene in scenes} == {None, *STYLES}
    assert {scene.background for scene in scenes} == {*BASE_BACKGROUNDS, *LORA_PLACES}


def test_scenes_are_the_same_for_the_same_seed() -> None:
    first, second = random.Random(4), random.Random(4)
    assert [random_any_scene(first) for _ in range(50)] == [
        random_any_scene(second) for _ in range(50)
    ]


def test_elements_are_found_by_name() -> None:
    assert element("top hat").trigger == "wearing a top hat"
    assert element("top hat").file == "top_hat"
    assert element("zibo").trigger == "zibo fox"
    with pytest.raises(ValueError, match="no LoRA of the toybox teaches 'cat'"):
        element("cat")


def test_plain_grounds_are_told_apart_by_eye() -> None:
    grounds = list(GROUNDS.values())
    for index, first in enumerate(grounds):
        for second in grounds[index + 1 :]:
            assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 90
