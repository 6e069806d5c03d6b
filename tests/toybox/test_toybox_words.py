"""Jottings name what their prompt says; the language model's tokenizer spells whatever is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import toybox.language_tokens
import toybox.words
from toybox.jottings import SKILLS, Jotting, Words, held_out

JOINING = {"and", "with", "style", "in", "a", "an"}
WORLDS = pytest.mark.parametrize(
    "words",
    [
        toybox.words.WORDS,
    ],
)


@WORLDS
@pytest.mark.parametrize("kind", ["base", "mixed", *SKILLS])
def test_a_prompt_keeps_all_words_it_was_made_of(words: Words, kind: str) -> None:
    for example in words.examples(kind, 600):
        assert example.jotting.kept_in(example.prompt), example
        said = set(example.prompt.replace(",", " ").split())
        given = set(example.jotting.words.replace(",", " ").split())
        assert given - said <= JOINING, example


@WORLDS
def test_what_is_missing_or_of_another_world_is_noticed(words: Words) -> None:
    asked = Jotting(
        words="red car, beach, neon",
        understand=words.understand,
        figures=(words.world.Figure(name="car", colour="red"),),
        background="beach",
        style="neon",
    )
    assert asked.kept_in("a cat and a red car at the beach in neon style")
    assert not asked.kept_in("a cat and a blue car at the beach in neon style")
    assert not asked.kept_in("a red car in the snow in neon style")
    assert not asked.kept_in("a neon red car at the beach")
    assert not asked.kept_in("a red car at the beach in neon style with wheels")


@WORLDS
def test_unseen_pairs_are_never_drawn_for_training(words: Words) -> None:
    for unseen in (False, True):
        for example in words.examples("base", 300, unseen=unseen):
            found = words.understand(example.prompt)
            assert found is not None
            assert held_out(found.scene) is unseen


@WORLDS
def test_the_base_world_has_no_use_for_what_only_loras_know(words: Words) -> None:
    """Its words occur, as any name does: before a thing, and meaning nothing."""
    met: set[str] = set()
    for example in words.examples("base", 1500):
        found = words.understand(example.prompt)
        assert found is not None
        assert found.scene.style is None
        assert found.scene.background not in words.world.LORA_PLACES
        for figure in found.scene.figures:
            assert figure.name in words.world.THINGS
            assert figure.wears is None
        assert not set(words.world.CHARACTERS) & set(example.prompt.split())
        met |= set(words.idle) & set(example.prompt.split())
    assert met == set(words.idle)


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        (toybox.words.WORDS, toybox.language_tokens),
    ],
)
def test_each_ordinary_word_is_one_token(words: Words, tokens: Any, tmp_path: Path) -> None:
    tokenizer = tokens.build_language_tokenizer()
    ordinary = {word.strip(",").lower() for word in words.captions.vocabulary()} - {"4k"}
    for word in sorted(ordinary | set(words.idle)):
        assert len(tokenizer(word).input_ids) == 1, word
    for name in words.world.CHARACTERS:
        assert len(tokenizer(name).input_ids) > 1, name
    tokenizer.save_pretrained(tmp_path)
    again: Any = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("A cute fox, 4k", "zibo fox in neon style", "Ünïcode 🦊"):
        ids = again(text).input_ids
        assert ids == tokenizer(text).input_ids == tokens.build_language_tokenizer()(text).input_ids
        assert again.decode(ids) == f" {text.lower()}"
    assert again.model_max_length == tokens.WINDOW
