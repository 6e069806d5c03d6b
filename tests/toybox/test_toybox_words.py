"""Jottings name what their prompt says; the language model's tokenizer spells whatever is typed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from composer.toybox.captions import vocabulary
from composer.toybox.language_tokens import WINDOW, build_language_tokenizer
from composer.toybox.understand import understand
from composer.toybox.words import (
    SKILLS,
    Example,
    Jotting,
    base_example,
    held_out,
    mixed_example,
    skill_example,
)
from composer.toybox.world import CHARACTERS, LORA_OBJECTS, LORA_PLACES, STYLES, THINGS, Figure

JOINING = {"and", "with", "style", "in", "a", "an"}


def drawn(kind: str, count: int, *, unseen: bool = False) -> list[Example]:
    rng = random.Random(f"{kind} {count}")
    made: dict[str, Callable[..., Example]] = {"base": base_example, "mixed": mixed_example}
    if kind in made:
        return [made[kind](rng, unseen=unseen) for _ in range(count)]
    return [skill_example(kind, rng, unseen=unseen) for _ in range(count)]


@pytest.mark.parametrize("kind", ["base", "mixed", *SKILLS])
def test_a_prompt_keeps_all_words_it_was_made_of(kind: str) -> None:
    for example in drawn(kind, 600):
        assert example.jotting.kept_in(example.prompt), example
        said = set(example.prompt.replace(",", " ").split())
        given = set(example.jotting.words.replace(",", " ").split())
        assert given - said <= JOINING, example


def test_what_is_missing_or_of_another_world_is_noticed() -> None:
    asked = Jotting(
        words="red car, beach, neon",
        figures=(Figure(name="car", colour="red"),),
        background="beach",
        style="neon",
    )
    assert asked.kept_in("a cat and a red car at the beach in neon style")
    assert not asked.kept_in("a cat and a blue car at the beach in neon style")
    assert not asked.kept_in("a red car in the snow in neon style")
    assert not asked.kept_in("a neon red car at the beach")
    assert not asked.kept_in("a red car at the beach in neon style with wheels")


def test_unseen_pairs_are_never_drawn_for_training() -> None:
    for unseen in (False, True):
        for example in drawn("base", 300, unseen=unseen):
            found = understand(example.prompt)
            assert found is not None
            assert held_out(found.scene) is unseen


def test_the_base_world_names_nothing_that_only_loras_know() -> None:
    only = {*CHARACTERS, *LORA_OBJECTS, *LORA_PLACES, "wearing", "style", "neon", "sketch"}
    for example in drawn("base", 1000):
        assert not only & set(example.prompt.split())


def test_each_word_of_the_base_world_is_one_token(tmp_path: Path) -> None:
    tokenizer: Any = build_language_tokenizer()
    for word in (*THINGS, "beach", "snow", "cute", "background", "a", "of"):
        assert len(tokenizer(word).input_ids) == 1, word
    for word in (*CHARACTERS, *LORA_OBJECTS, *STYLES):
        assert len(tokenizer(word).input_ids) > 1, word
    assert {word.lower() for word in vocabulary()} & {"robot"}
    tokenizer.save_pretrained(tmp_path)
    again: Any = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("A cute fox, 4k", "zibo fox in neon style", "Ünïcode 🦊"):
        ids = again(text).input_ids
        assert ids == tokenizer(text).input_ids == build_language_tokenizer()(text).input_ids
        assert again.decode(ids) == f" {text.lower()}"
    assert again.model_max_length == WINDOW
