"""A caption is understood as the scene it words, and what is of no scene is not understood."""

from __future__ import annotations

import random

import pytest

import toybox.words
from toybox.jottings import Words
from toybox.understand import understand
from toybox.world import Figure, Scene


@pytest.mark.parametrize(
    "words",
    [
        toybox.words.WORDS,
    ],
)
def test_captions_are_understood_as_their_scenes(words: Words) -> None:
    rng, count = random.Random("understand"), 6000
    world, unsaid, shown = words.world, 0, set[str | None]()
    counts = [0] * world.MOST_FIGURES
    for number in range(count):
        scene = world.random_any_scene(rng) if number % 4 else world.random_scene(rng)
        canonical = words.understand(words.captions.plain_caption(scene))
        assert canonical is not None
        assert canonical.scene == scene
        said = words.captions.caption(scene, rng)
        found = words.understand(said)
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
    "prompt",
    [
        "",
        "a fox",  # nowhere
        "a dragon on the beach",
        "fox on the beach",  # no article
        "a red fox wearing a car on the beach",
        "a fox and a cat and a dog on the beach",
        "a fox on the beach in oil paint style",
        "a very very very cute fox on the beach",
        "a turtle wearing a top hat on the beach",
        "a fox on the beach on the moon",
    ],
)
def test_what_is_of_no_scene(prompt: str) -> None:
    assert understand(prompt) is None
