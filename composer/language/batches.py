"""Samples as batches: padded rows, or rows packed with several samples that do not see each other.

The loss is the cross-entropy of the answers' tokens: all other labels are -100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from composer.errors import ComposerError
from composer.language.samples import Sample

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, all (rows, tokens), int64, on the CPU until moved."""

    ids: Tensor
    labels: Tensor
    """The token itself where it is to be learnt, -100 elsewhere; not shifted."""
    positions: Tensor
    """Count from 0 in each sample, and again from 0 in the padding at the end of a row."""
    mask: Tensor
    """1 for a token, 0 for padding."""
    packed: bool
    given: Tensor | None = None
    """(rows, other tokens): the requests, where an encoder reads them; `ids` are a decoder's."""
    given_mask: Tensor | None = None
    """1 for a token of `given`, 0 for padding."""

    @property
    def request(self) -> Tensor:
        """(rows, tokens), 1 for the tokens of `ids` that are not learnt, 0 for padding too: in a
        causal model the request, in a decoder the token it begins with."""
        return self.mask * (self.labels == IGNORED)

    @property
    def masks(self) -> Tensor | dict[str, Tensor]:
        """Which tokens count; by part where there are an encoder and a decoder."""
        if self.given_mask is None:
            return self.mask
        return {"encoder": self.given_mask, "decoder": self.mask}

    @property
    def learnt(self) -> int:
        """Tokens that have a loss."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def inputs(self, device: torch.device | str) -> dict[str, Any]:
        """What a model of transformers is given.

        Packed rows go without an attention mask: transformers then keeps the samples of a row
        apart by their positions, each of which begins at 0.
        """
        if self.given is not None and self.given_mask is not None:
            return {
                "input_ids": self.given.to(device),
                "attention_mask": self.given_mask.to(device),
                "decoder_input_ids": self.ids.to(device),
                "decoder_attention_mask": self.mask.to(device),
                "use_cache": False,
            }
        inputs: dict[str, Any] = {"input_ids": self.ids.to(device), "use_cache": False}
        if self.packed:
            return inputs | {"position_ids": self.positions.to(device)}
        return inputs | {"attention_mask": self.mask.to(device)}


def pack(samples: Sequence[Sample], window: int) -> list[tuple[int, ...]]:
    """Which samples share a row of at most `window` tokens: the first row with room, the longest
    samples first."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(samples)), key=lambda i: -len(samples[i].ids)):
        length = len(samples[index].ids)
        place = next((n for n, left in enumerate(room) if left >= length), None)
        if place is None:
            rows.append([])
            room.append(window)
            place = len(rows) - 1
        rows[place].append(index)
        room[place] -= length
    return [tuple(row) for row in rows]


def collate(rows: Sequence[Sequence[Sample]], pad: int = 0, *, start: int | None = None) -> Batch:
    """One row for each sequence of samples, padded on the right to the longest.

    start: the token that a decoder begins with; the requests then go to its encoder.
    """
    if start is not None:
        asked = [Sample(row[0].ids[: row[0].start], 0) for row in rows]
        answers = [Sample((start, *row[0].ids[row[0].start :]), 1) for row in rows]
        read = collate([[sample] for sample in asked], pad)
        written = collate([[sample] for sample in answers], pad)
        return replace(written, given=read.ids, given_mask=read.mask)
    length = max(sum(len(sample.ids) for sample in row) for row in rows)
    shape = (len(rows), length)
    ids = torch.full(shape, pad, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        begin = 0
        for sample in row:
            end = begin + len(sample.ids)
            tokens = torch.tensor(sample.ids)
            ids[number, begin:end] = tokens
            # the first token of a sample follows from nothing
            learnt = begin + max(sample.start, 1)
            labels[number, learnt:end] = tokens[max(sample.start, 1) :]
            positions[number, begin:end] = torch.arange(end - begin)
            mask[number, begin:end] = 1
            begin = end
        positions[number, begin:] = torch.arange(length - begin)
    return Batch(ids, labels, positions, mask, any(len(row) > 1 for row in rows))


def joined(batches: Sequence[Batch], pad: int = 0) -> tuple[Batch, list[slice]]:
    """Several batches under each other in one, and the rows that each takes in it."""
    length = max(batch.ids.shape[1] for batch in batches)

    def stacked(name: str, fill: int) -> Tensor:
        return _stacked([getattr(batch, name) for batch in batches], fill)

    positions: list[Tensor] = []
    for batch in batches:
        more = torch.arange(length - batch.ids.shape[1]).expand(len(batch.ids), -1)
        positions.append(torch.cat([batch.positions, more], dim=1))
    spans: list[slice] = []
    for batch in batches:
        begin = spans[-1].stop if spans else 0
        spans.append(slice(begin, begin + len(batch.ids)))
    given = [batch.given for batch in batches if batch.given is not None]
    given_masks = [batch.given_mask for batch in batches if batch.given_mask is not None]
    whole = Batch(
        stacked("ids", pad),
        stacked("labels", IGNORED),
        torch.cat(positions),
        stacked("mask", 0),
        any(batch.packed for batch in batches),
        _stacked(given, pad) if given else None,
        _stacked(given_masks, 0) if given_masks else None,
    )
    return whole, spans


def _stacked(parts: Sequence[Tensor], fill: int) -> Tensor:
    """(rows, tokens) each, under each other, filled up on the right to the longest."""
    length = max(part.shape[1] for part in parts)
    return torch.cat(
        [functional.pad(part, (0, length - part.shape[1]), value=fill) for part in parts]
    )


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the cross-entropies of the tokens to learn, in nats, float32.

    `logits` is (rows, tokens, vocabulary), `labels` (rows, tokens); each label is predicted by the
    logits one place before it. Divide by `Batch.learnt` for the mean.
    """
    wanted = labels[:, 1:]
    places = wanted != IGNORED
    # chosen first: in float32 all logits of a large vocabulary would not fit
    chosen = logits[:, :-1][places].float()
    return functional.cross_entropy(chosen, wanted[places], reduction="sum")


@torch.no_grad()
def check_packing(model: Any) -> None:
    """ComposerError if the samples of a packed row are not kept apart by this model."""
    top = min(int(model.config.vocab_size), 1000) - 1
    first = Sample(tuple(int(i) % top + 1 for i in (3, 1, 4, 1, 5)), 0)
    second = Sample(tuple(int(i) % top + 1 for i in (9, 2, 6)), 0)
    training = model.training
    model.eval()
    try:
        together = model(**collate([[first, second]]).inputs(model.device)).logits[0, 5:].float()
        alone = model(**collate([[second]]).inputs(model.device)).logits[0].float()
    finally:
        model.train(training)
    if not torch.allclose(together, alone, atol=0.02 * float(alone.abs().max()), rtol=0.0):
        raise ComposerError(
            f"{type(model).__name__} does not keep the samples of a packed row apart: train"
            " without packing."
        )
