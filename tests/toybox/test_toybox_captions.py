"""Captions are deterministic, correct English, and never name what only LoRAs know."""

from __future__ import annotations

import random
import re

import pytest

from toybox.captions import _article, caption, made_up_name, plain_caption
from toybox.world import (
    CHARACTERS,
    COLOURS,
    LORA_PLACES,
    STYLES,
    THINGS,
    Figure,
    Scene,
    element,
    random_element_scene,
    random_scene,
)

ONLY_LORAS = (
    *CHARACTERS,
    "robot",
    "unicorn",
    "trophy",
    "ufo",
    *LORA_PLACES,
    "top hat",
    "hat",
    "sunglasses",
    "wearing",
    *STYLES,
    "style",
)


def base_captions(count: int) -> list[tuple[Scene, str]]:
    rng = random.Random("captions")
    scenes = [random_scene(rng) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def test_captions_are_the_same_for_the_same_seed() -> None:
    scenes = [scene for scene, _ in base_captions(50)]
    first, second, third = random.Random(0), random.Random(0), random.Random(1)
    assert [caption(s, first) for s in scenes] == [caption(s, second) for s in scenes]
    assert [caption(s, third) for s in scenes] != [caption(s, random.Random(0)) for s in scenes]


def test_what_only_loras_know_is_never_worded_for_the_base_world() -> None:
    words = re.compile(rf"\b(?:{'|'.join(ONLY_LORAS)})\b")
    for _, said in base_captions(3000):
        assert words.search(said) is None, said


def test_a_caption_names_every_figure_and_its_colour() -> None:
    for scene, said in base_captions(3000):
        for figure in scene.figures:
            assert re.search(rf"\b{figure.name}\b", said), (scene, said)
            if figure.colour:
                assert figure.colour in said
        for name in set(THINGS) - {figure.name for figure in scene.figures}:
            # "night sky, star"? no: "under the stars" is a place, so whole words are asked
            assert not re.search(rf"\b{name}\b", said), (scene, said)


def test_left_and_right_are_said_as_they_are() -> None:
    sides = 0
    for scene, said in base_captions(3000):
        if len(scene.figures) != 2:
            continue
        first, second = (figure.name for figure in scene.figures)
        if match := re.search(
            r"(.*) on the left and (.*) on the right|(.*) to the left of (.*)", said
        ):
            left, right = match[1] or match[3], match[2] or match[4]
        elif match := re.search(r"(.*) to the right of (.*)", said):
            left, right = match[2], match[1]
        else:
            continue
        assert re.search(rf"\b{first}\b", left), said
        assert re.search(rf"\b{second}\b", right), said
        sides += 1
    assert sides > 200


def test_articles_fit_their_words_in_every_caption() -> None:
    for _, said in base_captions(3000):
        for article, word in re.findall(r"\b(an?) (\w+)", said):
            vowel = word[0] in "aeio" or word == "umbrella"
            assert article == ("an" if vowel else "a"), said


@pytest.mark.parametrize(
    ("word", "article"),
    [
        ("owl", "an"),
        ("apple", "an"),
        ("umbrella", "an"),
        ("ufo", "a"),
        ("unicorn", "a"),
        ("car", "a"),
    ],
)
def test_articles(word: str, article: str) -> None:
    assert _article(word) == f"{article} {word}"


@pytest.mark.parametrize(
    ("scene", "said"),
    [
        (Scene(figures=(Figure(name="owl"),), background="beach"), "an owl on the beach"),
        (
            Scene(
                figures=(Figure(name="cat"), Figure(name="car", colour="red")),
                background="night",
                style="neon",
            ),
            "a cat and a red car at night in neon style",
        ),
        (
            Scene(figures=(Figure(name="umbrella"),), background="plain grey"),
            "an umbrella on a grey background",
        ),
        (
            Scene(figures=(Figure(name="umbrella", colour="blue"),), background="moon"),
            "a blue umbrella on the moon",
        ),
        (
            Scene(
                figures=(Figure(name="zibo"), Figure(name="owl", wears="top hat")),
                background="volcano",
            ),
            "zibo fox and an owl wearing a top hat inside a volcano",
        ),
        (
            Scene(
                figures=(Figure(name="ufo"), Figure(name="pig", wears="sunglasses")),
                background="snow",
            ),
            "a ufo and a pig wearing sunglasses in the snow",
        ),
    ],
)
def test_the_canonical_wording(scene: Scene, said: str) -> None:
    assert plain_caption(scene) == said


@pytest.mark.parametrize("name", ["zibo", "top hat", "sunglasses", "neon", "moon", "ufo"])
def test_an_elements_captions_call_it(name: str) -> None:
    taught, rng = element(name), random.Random(5)
    for _ in range(200):
        scene = random_element_scene(taught, rng)
        assert taught.trigger in plain_caption(scene)
        assert re.search(rf"\b{name}\b", caption(scene, rng)) or taught.kind == "background"


def test_made_up_names_mean_nothing() -> None:
    rng = random.Random(6)
    made = {made_up_name(rng) for _ in range(3000)}
    assert made.isdisjoint({*CHARACTERS, *THINGS, *COLOURS, *ONLY_LORAS})
    assert len(made) > 2000


def test_some_captions_leave_the_background_unsaid_and_some_are_tags() -> None:
    said = base_captions(3000)
    tags = [c for _, c in said if not re.search(r"\b(?:a|an|the)\b", c)]
    assert 0.05 < len(tags) / len(said) < 0.15
