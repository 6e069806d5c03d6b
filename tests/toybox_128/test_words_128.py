"""Jottings name what their prompt says; the language model's tokenizer spells whatever is typed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from toybox_128.captions import vocabulary
from toybox_128.language_tokens import WINDOW, build_language_tokenizer
from toybox_128.understand import understand
from toybox_128.words import (
    IDLE_WORDS,
    SKILLS,
    Example,
    Jotting,
    base_example,
    held_out,
    mixed_example,
    skill_example,
)
from toybox_128.world import CHARACTERS, LORA_PLACES, THINGS, Figure

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


def test_the_base_world_has_no_use_for_what_only_loras_know() -> None:
    """Its words occur, as any name does: before a thing, and meaning nothing."""
    met: set[str] = set()
    for example in drawn("base", 1500):
        found = understand(example.prompt)
        assert found is not None
        assert found.scene.style is None
        assert found.scene.background not in LORA_PLACES
        for figure in found.scene.figures:
            assert figure.name in THINGS
            assert figure.wears is None
        assert not set(CHARACTERS) & set(example.prompt.split())
        met |= set(IDLE_WORDS) & set(example.prompt.split())
    assert met == set(IDLE_WORDS)


def test_each_ordinary_word_is_one_token(tmp_path: Path) -> None:
    tokenizer: Any = build_language_tokenizer()
    words = {word.strip(",").lower() for word in vocabulary()} - {"4k"}
    for word in sorted(words | set(IDLE_WORDS)):
        assert len(tokenizer(word).input_ids) == 1, word
    for name in CHARACTERS:
        assert len(tokenizer(name).input_ids) > 1, name
    tokenizer.save_pretrained(tmp_path)
    again: Any = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("A cute fox, 4k", "zibo fox in neon style", "Ünïcode 🦊"):
        ids = again(text).input_ids
        assert ids == tokenizer(text).input_ids == build_language_tokenizer()(text).input_ids
        assert again.decode(ids) == f" {text.lower()}"
    assert again.model_max_length == WINDOW
