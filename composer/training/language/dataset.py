"""What an adapter learns from: the rows of its data, and how batches are drawn from them.

A batch is a function of the seed and its number alone, so a resumed training sees the batches that
the uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from composer.errors import ComposerError
from composer.language.batches import Batch, collate, pack
from composer.language.load import LanguageModel
from composer.language.records import Record, read_records
from composer.language.samples import Sample, Samples, encode, window_of
from composer.training.draws import generator_for
from composer.training.language.settings import LanguageTraining

Row = tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The rows of one training, each of one sample or of several packed ones."""

    rows: tuple[Row, ...]
    eval_rows: tuple[Row, ...]
    window: int
    cut: int
    """Samples whose request lost its beginning, for the window was too short."""
    seed: int
    batch_size: int
    pad: int
    start: int | None = None
    """The token that a decoder begins with; None for a causal model."""

    def batch(self, number: int) -> Batch:
        """The `number`-th batch of the training, counted over all processes."""
        return self._collate([self.rows[index] for index in self._indices(number)])

    def learnt(self, number: int) -> int:
        """The tokens of that batch that have a loss."""
        return sum(sample.learnt for index in self._indices(number) for sample in self.rows[index])

    def eval_batches(self) -> list[Batch]:
        """What is measured on, always in the same batches."""
        starts = range(0, len(self.eval_rows), self.batch_size)
        return [self._collate(self.eval_rows[s : s + self.batch_size]) for s in starts]

    def steps(self, epochs: float, rows_a_step: int) -> int:
        """Steps that go through the rows `epochs` times, the last one perhaps further."""
        return max(math.ceil(epochs * len(self.rows) / rows_a_step), 1)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all tokens in their order."""
        digest = hashlib.sha256()
        for rows in (self.rows, self.eval_rows):
            digest.update(repr([[(s.ids, s.start) for s in row] for row in rows]).encode())
        return digest.hexdigest()

    def _collate(self, rows: Sequence[Row]) -> Batch:
        return collate(rows, self.pad, start=self.start)

    def _indices(self, number: int) -> list[int]:
        count = len(self.rows)
        slots = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [_order(self.seed, slot // count, count)[slot % count] for slot in slots]


def prepare_dataset(
    language: LanguageModel,
    config: LanguageTraining,
    *,
    records: Sequence[Record] | None = None,
    eval_records: Sequence[Record] | None = None,
) -> Dataset:
    """Read, word, tokenise and check all data, before any work.

    `records` and `eval_records` stand in for the config's files. Raises ComposerError for data
    that is missing, empty, malformed or too long, with file and line.
    """
    if records is None:
        if config.data is None:
            raise ComposerError("There is nothing to train on: give a .jsonl file of records.")
        records = read_records(config.data)
    if eval_records is None and config.eval_data is not None:
        eval_records = read_records(config.eval_data, split="test")
    if not records:
        raise ComposerError("There is nothing to train on: the data has no record.")
    window = window_of(language.model, language.tokenizer, config.window)

    def encoded(some: Sequence[Record]) -> Samples:
        return encode(
            some, language.tokenizer, window, config.template, encoder=language.start is not None
        )

    if config.packing and language.start is not None:
        raise ComposerError(
            f"{language.name} reads requests by an encoder, whose rows cannot be packed: train"
            " without packing."
        )
    kept = list(records)
    if eval_records is None:
        kept, eval_records = _split(kept, config)
    learnt, measured = encoded(kept), encoded(eval_records)
    return Dataset(
        rows=_rows(learnt, config.packing),
        eval_rows=_rows(measured, False),
        window=window,
        cut=learnt.cut,
        seed=config.seed,
        batch_size=config.batch_size,
        pad=language.pad,
        start=language.start,
    )


def _split(records: list[Record], config: LanguageTraining) -> tuple[list[Record], list[Record]]:
    """`eval_share` of the records, drawn by the seed, are kept for measuring."""
    count = round(len(records) * config.eval_share)
    if count == 0:
        return records, []
    if count == len(records):
        raise ComposerError(
            f"eval_share {config.eval_share} of {len(records)} records leaves none to train on:"
            " give a smaller share, or more data."
        )
    chosen = set(_order(config.seed, -1, len(records))[:count])
    kept = [record for index, record in enumerate(records) if index not in chosen]
    return kept, [record for index, record in enumerate(records) if index in chosen]


def _rows(samples: Samples, packing: bool) -> tuple[Row, ...]:
    if not packing:
        return tuple((sample,) for sample in samples.samples)
    return tuple(
        tuple(samples.samples[index] for index in row)
        for row in pack(samples.samples, samples.window)
    )


@lru_cache(maxsize=16)
def _order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    order: Any = torch.randperm(count, generator=generator_for(seed, "row", epoch))
    return tuple(order.tolist())
