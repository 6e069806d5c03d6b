"""A caption is understood as the scene it words, and what is of no scene is not understood."""

from __future__ import annotations

import random

import pytest

from toybox import captions, world
from toybox.captions import WORN
from toybox.understand import understand
from toybox.world import CHARACTERS, CLOTHING, WEARERS, Figure, Scene


def test_captions_are_understood_as_their_scenes() -> None:
    rng, count = random.Random("understand"), 6000
    unsaid, shown = 0, set[str | None]()
    counts = [0] * world.MOST_FIGURES
    for number in range(count):
        scene = world.random_any_scene(rng) if number % 4 else world.random_scene(rng)
        canonical = understand(captions.plain_caption(scene))
        assert canonical is not None
        assert canonical.scene == scene
        said = captions.caption(scene, rng)
        found = understand(said)
        if found is None:
            unsaid += 1
        else:
            assert found.scene == scene, said
            assert all(figure in said for figure in found.figures)
            assert found.place in said
            counts[len(scene.figures) - 1] += 1
            shown |= {scene.background, scene.style, *(f.wears for f in scene.figures)}
    assert unsaid < count * 0.08, "only captions without their place are not understood"
    assert min(counts) > 500
    assert {*world.LORA_PLACES, *world.STYLES, *world.CLOTHING} <= shown


def test_what_stands_in_a_prompt() -> None:
    found = understand("A photo of a cute red car and florp the fox at night in neon style, 4k")
    assert found is not None
    figures = (Figure(name="car", colour="red"), Figure(name="fox"))
    assert found.scene == Scene(figures=figures, background="night", style="neon")
    assert found.figures == ("cute red car", "florp the fox")
    assert found.place == "at night"


@pytest.mark.parametrize(
    "words",
    [
        "a cat, a red fish and tavo robot at home",
        "a cat on the left, a red fish in the middle and tavo robot on the right at home",
        "a red fish between a cat and tavo robot at home",
        "a cat next to a red fish and tavo robot at home",
        "cat, red fish, tavo robot, living room",
    ],
)
def test_three_figures_stand_from_left_to_right(words: str) -> None:
    found = understand(words)
    assert found is not None
    figures = (Figure(name="cat"), Figure(name="fish", colour="red"), Figure(name="tavo"))
    assert found.scene == Scene(figures=figures, background="room")
    assert found.listed == words.startswith("cat, ")


def test_everyone_who_can_wears_everything() -> None:
    for name in WEARERS:
        words = f"{name} {CHARACTERS[name]}" if name in CHARACTERS else f"a {name}"
        for piece in CLOTHING:
            found = understand(f"{words} wearing {WORN[piece]} in candy land in watercolor style")
            assert found is not None
            figures = (Figure(name=name, wears=piece),)
            assert found.scene == Scene(
                figures=figures, background="candy land", style="watercolor"
            )


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a fox",  # nowhere
        "a dragon on the beach",
        "fox on the beach",  # no article
        "a cat and fox on the beach",
        "a red fox wearing a car on the beach",
        "a fox and a cat and a dog on the beach",
        "a fox, a cat, a dog and a pig on the beach",  # four
        "a fox, a cat and dog on the beach",
        "a cat between a fox on the beach",
        "a fox on the left, a cat in the middle on the beach",
        "a fox on the beach in oil paint style",
        "a very very very cute fox on the beach",
        "a turtle wearing a crown on the beach",
        "a turtle wearing a top hat on the beach",
        "tavo robot wearing a crown on the beach",
        "zibo cat on the beach",
        "a fox on the beach on the moon",
        "a fox in candy",
        "fox, cat, dog, pig, beach",
        "fox, beach, oil paint style",
    ],
)
def test_what_is_of_no_scene(prompt: str) -> None:
    assert understand(prompt) is None
