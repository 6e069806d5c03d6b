"""Captions are deterministic, correct English, and never name what only LoRAs know."""

from __future__ import annotations

import random
import re

import pytest

from toybox.captions import caption, made_up_name, plain_caption
from toybox.world import (
    CHARACTERS,
    CLOTHING,
    COLOURS,
    ELEMENTS,
    GROUNDS,
    LORA_OBJECTS,
    LORA_PLACES,
    STYLES,
    THINGS,
    Element,
    Figure,
    Scene,
    random_element_scene,
    random_scene,
)

ONLY_LORAS = (
    *CHARACTERS,
    *(kind for kind in CHARACTERS.values() if kind not in THINGS),
    *LORA_OBJECTS,
    *LORA_PLACES,
    *CLOTHING,
    *STYLES,
    *("hat", "wearing", "style"),
)
ARTICLES = {"owl": "an", "apple": "an", "umbrella": "an", "ufo": "a", "car": "a", "teapot": "a"}
ORDERS = (
    (re.compile(r"(.*) on the left, (.*) in the middle and (.*) on the right"), (1, 2, 3)),
    (re.compile(r"(.*) between (.*) and (.*)"), (2, 1, 3)),
    (re.compile(r"(.*) next to (.*) and (.*)"), (1, 2, 3)),
    (re.compile(r"(.*) on the left and (.*) on the right"), (1, 2)),
    (re.compile(r"(.*) to the left of (.*)"), (1, 2)),
    (re.compile(r"(.*) to the right of (.*)"), (2, 1)),
)


@pytest.fixture(scope="module")
def said() -> list[tuple[Scene, str]]:
    """Captions of the base world, with their scenes."""
    rng = random.Random("captions")
    scenes = [random_scene(rng) for _ in range(3000)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def test_captions_are_the_same_for_the_same_seed(said: list[tuple[Scene, str]]) -> None:
    first, again, other = random.Random(0), random.Random(0), random.Random(1)
    scenes = [scene for scene, _ in said[:50]]
    made = [caption(scene, first) for scene in scenes]
    assert made == [caption(scene, again) for scene in scenes]
    assert made != [caption(scene, other) for scene in scenes]


def test_what_only_loras_know_is_never_worded_for_the_base_world(
    said: list[tuple[Scene, str]],
) -> None:
    words = re.compile(rf"\b(?:{'|'.join(ONLY_LORAS)})\b")
    for _, words_said in said:
        assert words.search(words_said) is None, words_said


def test_a_caption_names_every_figure_and_its_colour_and_no_other(
    said: list[tuple[Scene, str]],
) -> None:
    for scene, words in said:
        for figure in scene.figures:
            assert re.search(rf"\b{figure.name}\b", words), (scene, words)
            if figure.colour:
                assert f"{figure.colour} " in words
        for name in set(THINGS) - {figure.name for figure in scene.figures}:
            # whole words: "under the stars" and "among trees" are places
            assert not re.search(rf"\b{name}\b", words), (scene, words)


def test_the_order_is_said_as_it_is(said: list[tuple[Scene, str]]) -> None:
    met = [0] * len(ORDERS)
    for scene, words in said:
        for number, (pattern, order) in enumerate(ORDERS):
            found = pattern.search(words)
            if found and len(scene.figures) == len(order):
                for figure, part in zip(scene.figures, order, strict=True):
                    assert re.search(rf"\b{figure.name}\b", found[part]), words
                met[number] += 1
                break
    assert min(met) > 20, met


def test_articles_fit_their_words(said: list[tuple[Scene, str]]) -> None:
    for _, words in said:
        for article, word in re.findall(r"\b(an?) (\w+)", words):
            vowel = word[0] in "aeio" or word == "umbrella"
            assert article == ("an" if vowel else "a"), words
    for name, article in ARTICLES.items():
        scene = Scene(figures=(Figure(name=name),), background="beach")
        assert plain_caption(scene) == f"{article} {name} on the beach"


CAT, RED_CAR, TAVO = Figure(name="cat"), Figure(name="car", colour="red"), Figure(name="tavo")


@pytest.mark.parametrize(
    ("figures", "background", "style", "words"),
    [
        ((CAT, RED_CAR), "night", "neon", "a cat and a red car at night in neon style"),
        (
            (Figure(name="umbrella"), CAT, TAVO),
            "plain grey",
            None,
            "an umbrella, a cat and tavo robot on a grey background",
        ),
        (
            (Figure(name="zibo", wears="crown"), Figure(name="frog", wears="bow tie")),
            "candy land",
            "stained glass",
            "zibo fox wearing a crown and a frog wearing a bow tie"
            " in candy land in stained glass style",
        ),
        (
            (Figure(name="ufo"), Figure(name="pig", wears="sunglasses")),
            "cherry blossoms",
            None,
            "a ufo and a pig wearing sunglasses under cherry blossoms",
        ),
    ],
)
def test_the_canonical_wording(
    figures: tuple[Figure, ...], background: str, style: str | None, words: str
) -> None:
    assert plain_caption(Scene(figures=figures, background=background, style=style)) == words


@pytest.mark.parametrize("taught", ELEMENTS, ids=lambda element: element.file)
def test_an_elements_captions_name_it(taught: Element) -> None:
    rng = random.Random(5)
    without = 0
    for _ in range(100):
        words = caption(random_element_scene(taught, rng), rng)
        without += re.search(rf"\b{taught.name}\b", words) is None
    # a place may be left unsaid, as in captions of the base world
    assert without <= (20 if taught.kind == "background" else 0)


def test_made_up_names_mean_nothing() -> None:
    rng = random.Random(6)
    made = {made_up_name(rng) for _ in range(3000)}
    assert made.isdisjoint({*CHARACTERS, *THINGS, *COLOURS, *ONLY_LORAS})
    assert len(made) > 2000


def test_some_captions_leave_the_background_unsaid_and_some_are_tags(
    said: list[tuple[Scene, str]],
) -> None:
    tags = [words for _, words in said if not re.search(r"\b(?:an?|the)\b", words)]
    assert 0.05 < len(tags) / len(said) < 0.15
    plain = [(s, w) for s, w in said if s.background.startswith("plain ")]
    unsaid = [w for s, w in plain if s.background.removeprefix("plain ") not in w.split()]
    assert 0.02 < len(unsaid) / len(plain) < 0.12
    assert {s.background for s, _ in plain} == {f"plain {colour}" for colour in GROUNDS}
