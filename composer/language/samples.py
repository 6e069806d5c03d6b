"""Records as tokens: what is given and what is to be learnt, checked against the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from composer.errors import ComposerError
from composer.language.records import Record
from composer.language.template import Template, worded


@dataclass(frozen=True)
class Sample:
    """One record as token numbers; from `start` on they are the answer, which alone is learnt."""

    ids: tuple[int, ...]
    start: int

    @property
    def learnt(self) -> int:
        """How many tokens have a loss: the answer's, but for a token that nothing goes before."""
        return len(self.ids) - max(self.start, 1)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """All samples of one data file, at most `window` tokens each.

    `cut` counts those whose request did not fit beside the answer and lost its beginning.
    """

    samples: tuple[Sample, ...]
    window: int
    cut: int

    def __len__(self) -> int:
        return len(self.samples)


def window_of(model: Any, tokenizer: Any, wanted: int | None = None) -> int:
    """The longest row of tokens: what model and tokenizer allow, or less if less is wanted."""
    limits = [
        getattr(model.config, "max_position_embeddings", None),
        getattr(tokenizer, "model_max_length", None),
    ]
    # a tokenizer that knows no limit says 1e30
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 1e9]
    most = min(known, default=None)
    if wanted is None:
        return min(most or 512, 512)
    if wanted < 2:
        raise ComposerError(f"window is {wanted}: give 2 tokens or more.")
    if most is not None and wanted > most:
        raise ComposerError(f"window is {wanted}, but this model reads {most} tokens: give less.")
    return wanted


def encode(
    records: Sequence[Record],
    tokenizer: Any,
    window: int,
    template: Template = "auto",
    *,
    encoder: bool = False,
) -> Samples:
    """The records as tokens, each answer whole and with its end.

    encoder: the requests are read by an encoder, and so do not share the window with the answers.

    A request that does not fit before its answer loses its beginning, and is counted. Raises
    ComposerError, naming the line, for an answer that does not fit in the window at all.
    """
    found: list[Sample] = []
    cut = 0
    for record in records:
        asked, answer, special = worded(record, tokenizer, template)
        given = encode_request(asked, tokenizer, special=special, encoder=encoder)
        learnt = _answer(answer, tokenizer, special=special)
        # one token of the request at least, or nothing would call the answer
        room = window - len(learnt)
        if encoder:
            # one place of the decoder's is for the token it begins with
            given, room = given or _end(tokenizer), window if room >= 1 else 0
        if room < min(len(given), 1):
            raise ComposerError(
                f"{record.origin}: the answer has {len(learnt)} tokens, and the window"
                f" {window}: shorten it, or give a longer window."
            )
        if len(given) > room:
            given, cut = given[len(given) - room :], cut + 1
        found.append(Sample((*given, *learnt), len(given)))
        if found[-1].learnt < 1:
            raise ComposerError(f"{record.origin}: the answer has no token: write more.")
    return Samples(samples=tuple(found), window=window, cut=cut)


def encode_request(
    asked: str, tokenizer: Any, *, special: bool, encoder: bool = False
) -> list[int]:
    """The tokens of a request with the beginning the model knows, and without any end; for an
    encoder with the end that the tokenizer puts there.

    `special` says that the text holds its special tokens already.
    """
    ids = [int(i) for i in tokenizer(asked, add_special_tokens=not special).input_ids]
    if not special and not encoder:
        while ids and ids[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
            ids.pop()
    if not ids and tokenizer.bos_token_id is not None:
        ids.append(int(tokenizer.bos_token_id))
    return ids


def _end(tokenizer: Any) -> list[int]:
    """What an encoder reads where nothing is asked."""
    return [int(tokenizer.eos_token_id or 0)]


def _answer(answer: str, tokenizer: Any, *, special: bool) -> list[int]:
    """The answer's tokens and the one that ends it, which a chat template may have written."""
    ids = [int(i) for i in tokenizer(answer, add_special_tokens=False).input_ids]
    ends = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    if tokenizer.eos_token_id is not None and not (special and ids and ids[-1] in ends):
        ids.append(int(tokenizer.eos_token_id))
    return ids
