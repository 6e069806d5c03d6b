"""Padded, packed and joined rows give each sample the loss it has alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies
from tiny_language import tiny_llama

from composer.errors import ComposerError
from composer.language.batches import (
    IGNORED,
    Batch,
    answer_loss,
    check_packing,
    collate,
    joined,
    pack,
)
from composer.language.samples import Sample

RNG = random.Random(0)


def sample(length: int, start: int) -> Sample:
    return Sample(tuple(RNG.randrange(1, 250) for _ in range(length)), start)


SAMPLES = [sample(9, 4), sample(5, 0), sample(12, 11), sample(3, 1)]


def loss(model: Any, batch: Batch) -> torch.Tensor:
    return answer_loss(model(**batch.inputs("cpu")).logits, batch.labels)


def naive(model: Any, one: Sample) -> float:
    """The sum of -log p of each answer token, one sample and one token at a time."""
    logits = model(input_ids=torch.tensor([one.ids])).logits[0].double()
    chances = logits.log_softmax(-1)
    places = range(max(one.start, 1), len(one.ids))
    return -sum(float(chances[i - 1, one.ids[i]].detach()) for i in places)


def test_padded_and_packed_rows_have_the_loss_of_each_sample_alone() -> None:
    model = tiny_llama()
    expected = sum(naive(model, one) for one in SAMPLES)
    padded = collate([[one] for one in SAMPLES])
    packed = collate([SAMPLES[:3], SAMPLES[3:]])
    assert not padded.packed
    assert packed.packed
    assert padded.learnt == packed.learnt == sum(one.learnt for one in SAMPLES)
    assert float(loss(model, padded)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(model, packed)) == pytest.approx(expected, rel=1e-5)


def test_a_loss_is_what_transformers_says() -> None:
    model = tiny_llama()
    batch = collate([[one] for one in SAMPLES])
    theirs = model(**batch.inputs("cpu"), labels=batch.labels).loss
    assert float(loss(model, batch)) / batch.learnt == pytest.approx(float(theirs), rel=1e-5)


def test_joined_batches_keep_their_rows() -> None:
    model = tiny_llama()
    parts = [collate([SAMPLES[:2]]), collate([[SAMPLES[2]], [SAMPLES[3]]])]
    whole, spans = joined(parts)
    assert spans == [slice(0, 1), slice(1, 3)]
    logits = model(**whole.inputs("cpu")).logits
    for part, rows in zip(parts, spans, strict=True):
        together = answer_loss(logits[rows], whole.labels[rows])
        assert float(together) == pytest.approx(float(loss(model, part)), rel=1e-5)


def test_padding_has_no_label_and_no_mask() -> None:
    batch = collate([[SAMPLES[0]], [SAMPLES[3]]], pad=7)
    assert batch.ids[1, 3:].tolist() == [7] * 6
    assert batch.mask[1].tolist() == [1] * 3 + [0] * 6
    assert (batch.labels[1, 3:] == IGNORED).all()
    assert batch.labels[0].tolist() == [IGNORED] * 4 + list(SAMPLES[0].ids[4:])


@settings(deadline=None)
@given(strategies.lists(strategies.integers(1, 20), min_size=1, max_size=30))
def test_packing_loses_nothing_and_fits(lengths: list[int]) -> None:
    samples = [Sample((1,) * length, 0) for length in lengths]
    rows = pack(samples, 20)
    assert sorted(index for row in rows for index in row) == list(range(len(samples)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert max(filled) <= 20
    # first fit leaves at most one row that is not more than half full
    assert sum(used <= 10 for used in filled) <= 1


def test_a_model_that_mixes_packed_samples_is_refused() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    check_packing(tiny_llama())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bloom = BloomForCausalLM(
            BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3)
        )
    with pytest.raises(ComposerError, match="without packing"):
        check_packing(bloom)
