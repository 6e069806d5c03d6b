"""Prompts of any length become text vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from composer.diffusion.conditioning import (
    count_chunks,
    encode_prompts,
    first_chunks,
    split_into_chunks,
)
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def test_short_prompts_are_encoded_as_the_pipeline_does(model: Model, tiny_sd: Path) -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_sd, local_files_only=True)
    positive, negative = pipeline.encode_prompt("a fox", "cpu", 1, True, "")
    ours = encode_prompts(model, "a fox", "")
    assert ours.negative is not None
    torch.testing.assert_close(ours.positive.states, positive)
    torch.testing.assert_close(ours.negative.states, negative)


def test_long_prompts_are_encoded_in_chunks_and_both_sides_are_equally_long(model: Model) -> None:
    long = "a fox and a hen and an owl and a cat and a dog"  # one token for each letter here
    ours = encode_prompts(model, long, "blue")
    assert ours.negative is not None
    assert ours.positive.states.shape == ours.negative.states.shape == (1, 64, 32)
    assert encode_prompts(model, "a fox", long).positive.states.shape == (1, 64, 32)
    assert encode_prompts(model, long, None).negative is None
    # The second chunk of the short side is the empty prompt.
    empty = encode_prompts(model, "", None).positive.states
    torch.testing.assert_close(ours.negative.states[:, 32:], empty)


def test_chunks_hold_every_token_once(model: Model) -> None:
    tokenizer = model.encoders["text_encoder"].tokenizer
    text = "a fox and a hen and an owl and a cat and a dog"
    rows = [chunk.ids for chunk in split_into_chunks(model, text)["text_encoder"]]
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert all(len(row) == 32 and row[0] == tokenizer.bos_token_id for row in rows)
    inner = [[i for i in row if i not in special] for row in rows]
    assert [i for row in inner for i in row] == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(("letters", "chunks"), [(0, 1), (30, 1), (31, 2), (60, 2), (61, 3)])
def test_a_word_longer_than_a_chunk_is_cut(model: Model, letters: int, chunks: int) -> None:
    assert count_chunks(model, "x" * letters) == chunks


def test_clip_skip_counts_as_in_a1111(model: Model) -> None:
    last = encode_prompts(model, "a fox", None, clip_skip=1).positive.states
    before = encode_prompts(model, "a fox", None, clip_skip=2).positive.states
    assert not torch.allclose(last, before)
    ids = first_chunks(model, ["a fox"])["text_encoder"]
    with torch.no_grad():
        network = model.encoders["text_encoder"].network
        hidden = network(ids, output_hidden_states=True).hidden_states
        torch.testing.assert_close(before, network.final_layer_norm(hidden[-2]))
    with pytest.raises(ComposerError, match=r"Clip skip 3 is more than the 2 layers"):
        encode_prompts(model, "a fox", None, clip_skip=3)
