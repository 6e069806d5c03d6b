"""The tokenizer: one token for each word of the grammar, and some token for anything."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from toybox.captions import caption, plain_caption, vocabulary
from toybox.tokens import MAX_LENGTH, build_tokenizer
from toybox.world import CHARACTERS, ELEMENTS, random_element_scene, random_scene

SHIPPED = Path(__file__).parents[2] / "assets" / "toybox" / "tokenizer"
ODD = ("", " ", "ZIBO Fox!", "café – naïve", "猫と犬", "🐱🚗", "<lora:x:1> (cat:1.2)", "1234567890")


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def test_every_word_of_the_grammar_is_one_token(tokenizer: CLIPTokenizer) -> None:
    words = {word.strip(",") for word in vocabulary()}
    # a digit is always a token of its own, as in CLIP
    assert {word for word in words if len(tokenizer.tokenize(word)) != 1} == {"4k"}


def test_canonical_captions_are_one_token_a_word(tokenizer: CLIPTokenizer) -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(200)]
    scenes += [random_element_scene(taught, rng) for taught in ELEMENTS for _ in range(20)]
    for scene in scenes:
        words = re.findall(r"\w+|,", plain_caption(scene))
        tokens = tokenizer.tokenize(" ".join(words))
        letters = sum(len(tokenizer.tokenize(w)) - 1 for w in words if w in CHARACTERS)
        assert len(tokens) == len(words) + letters


def test_captions_fit_the_limit(tokenizer: CLIPTokenizer) -> None:
    rng = random.Random(1)
    said = [caption(random_scene(rng), rng) for _ in range(2000)]
    lengths = [len(ids) for ids in tokenizer(said).input_ids]
    assert sum(length > MAX_LENGTH for length in lengths) < 0.005 * len(lengths)


@pytest.mark.parametrize("text", ODD)
def test_any_text_tokenises(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert max(ids) < len(tokenizer)


def test_case_and_spaces_do_not_matter(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer("A  Red CAR ").input_ids == tokenizer("a red car").input_ids


def test_a_prompt_is_cut_and_padded_to_the_limit(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.model_max_length == MAX_LENGTH
    ids = tokenizer(
        ["a cat", "cat " * 500], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    assert tuple(ids.shape) == (2, MAX_LENGTH)
    assert ids[1, -1] == tokenizer.eos_token_id


def test_it_is_the_same_when_saved_and_loaded(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.model_max_length == MAX_LENGTH
    assert len(loaded) == len(tokenizer)
    rng = random.Random(2)
    texts = [*ODD, *(caption(random_scene(rng), rng) for _ in range(100))]
    assert loaded(texts).input_ids == tokenizer(texts).input_ids
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    assert [getattr(loaded, k) for k in special] == [getattr(tokenizer, k) for k in special]


def test_it_is_built_the_same_every_time(tokenizer: CLIPTokenizer) -> None:
    # each stage builds it again, and the text encoder knows words by their numbers alone
    vocab = tokenizer.get_vocab()
    for _ in range(6):
        assert build_tokenizer().get_vocab() == vocab
    shipped = CLIPTokenizer.from_pretrained(SHIPPED, local_files_only=True)
    assert shipped.get_vocab() == vocab
