"""A caption is understood as the scene it words, and what is of no scene is not understood."""

from __future__ import annotations

import random

import pytest

from toybox_128.captions import WORN, caption, plain_caption
from toybox_128.understand import understand
from toybox_128.world import (
    CHARACTERS,
    CLOTHING,
    LORA_PLACES,
    STYLES,
    WEARERS,
    Figure,
    Scene,
    random_any_scene,
    random_scene,
)


def test_captions_are_understood_as_their_scenes() -> None:
    rng = random.Random("understand at 128")
    unsaid, counts, shown = 0, [0, 0, 0], set[str | None]()
    for number in range(4000):
        scene = random_any_scene(rng) if number % 4 else random_scene(rng)
        canonical = understand(plain_caption(scene))
        assert canonical is not None, plain_caption(scene)
        assert canonical.scene == scene
        words = caption(scene, rng)
        found = understand(words)
        if found is None:
            unsaid += 1
        else:
            assert found.scene == scene, words
            assert all(figure in words for figure in found.figures)
            assert found.place in words
            counts[len(scene.figures) - 1] += 1
            shown |= {scene.background, scene.style, *(f.wears for f in scene.figures)}
    assert unsaid < 4000 * 0.08, "only captions without their place are not understood"
    assert min(counts) > 500
    assert {*LORA_PLACES, *STYLES, *CLOTHING} <= shown


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
        "a fox, a cat, a dog and a pig on the beach",  # four
        "a fox, a cat and dog on the beach",
        "a cat between a fox on the beach",
        "a fox on the left, a cat in the middle on the beach",
        "a fox on the beach in oil paint style",
        "a very very very cute fox on the beach",
        "a turtle wearing a crown on the beach",
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
