"""Prompts of three figures and of everything that can be worn are read; others are not."""

from __future__ import annotations

import pytest

from toybox.captions import WORN
from toybox.understand import understand
from toybox.world import (
    CHARACTERS,
    CLOTHING,
    WEARERS,
    Figure,
    Scene,
)


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
