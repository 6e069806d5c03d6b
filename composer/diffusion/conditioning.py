"""Prompts into text vectors, as A1111 does it: words weighted by their emphasis, in chunks of the
tokenizer's own length, as many as the prompt needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composer.diffusion.editing import check_unchanging
from composer.diffusion.emphasis import Emphasised, parse_emphasis
from composer.diffusion.model import Model, TextEncoder
from composer.errors import ComposerError

COMMA_WITHIN = 20
"""Tokens; words after a comma that near to the end of a full chunk go into the next one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """What a model's text encoders make of prompts, row by row.

    states: (rows, tokens, width) that the U-Net's cross-attention reads.
    pooled: (rows, width) that joins the timestep; None where the family has none.
    """

    states: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: slice | Sequence[int]) -> Text:
        """Some of the rows."""
        pooled = None if self.pooled is None else self.pooled[rows]
        return Text(states=self.states[rows], pooled=pooled)

    def repeated(self, times: int) -> Text:
        """Each row so many times, one after the other."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(times, dim=0)
        return Text(states=self.states.repeat_interleave(times, dim=0), pooled=pooled)

    def to(self, device: torch.device, dtype: torch.dtype) -> Text:
        """The same rows elsewhere."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return Text(states=self.states.to(device, dtype), pooled=pooled)

    def zeros(self) -> Text:
        """As many rows of zeros."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return Text(states=torch.zeros_like(self.states), pooled=pooled)

    @classmethod
    def joined(cls, texts: Iterable[Text]) -> Text:
        """The rows of all of them, which have equally many tokens."""
        texts = list(texts)
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return cls(
            states=torch.cat([text.states for text in texts]),
            pooled=torch.cat(pooled) if pooled else None,
        )


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Text of one row with and without the prompt.

    ``negative`` is None where no guidance is wanted; otherwise both have the same length.
    """

    positive: Text
    negative: Text | None

    @property
    def rows(self) -> Text:
        """1 or 2 rows: where there is guidance, without the prompt first."""
        if self.negative is None:
            return self.positive
        return Text.joined([self.negative, self.positive])


def encode_prompts(
    model: Model, prompt: str, negative_prompt: str | None, *, clip_skip: int = 1
) -> Conditioning:
    """Encode a prompt and, unless it is None, a negative prompt, padded to equal chunk counts.

    ``clip_skip`` counts as in A1111: 1 is the last layer, 2 the one before it, with the final
    layer norm applied to either. SDXL reads the layer before the last as it is, for 1 and for 2.

    Raises:
        ComposerError: a prompt changes from step to step, or cannot be read.
    """
    prompts = [prompt] if negative_prompt is None else [prompt, negative_prompt]
    for text in prompts:
        check_unchanging(text)
    positive, *rest = encode_texts(model, prompts, clip_skip=clip_skip)
    negative = rest[0] if rest else None
    if negative is not None and not negative_prompt and model.zero_negative:
        negative = negative.zeros()
    return Conditioning(positive=positive, negative=negative)


@torch.no_grad()
def encode_texts(model: Model, texts: Sequence[str], *, clip_skip: int = 1) -> list[Text]:
    """Text of one row for each of ``texts``, padded to equal chunk counts with empty chunks.

    Other than prompts, they are of one step: no brackets in them change.
    """
    split, empty = [split_into_chunks(model, text) for text in texts], split_into_chunks(model, "")
    count = max(len(rows) for chunks in split for rows in chunks.values())
    encoded: list[Text] = []
    for chunks in split:
        padded = {part: rows + empty[part] * (count - len(rows)) for part, rows in chunks.items()}
        ids = {part: torch.tensor([row.ids for row in rows]) for part, rows in padded.items()}
        weights = {
            part: torch.tensor([row.weights for row in rows]) for part, rows in padded.items()
        }
        text = encode_ids(model, ids, weights, clip_skip=clip_skip)
        states = text.states.reshape(1, -1, text.states.shape[-1])
        # what A1111 and ComfyUI take of a prompt of several chunks
        pooled = None if text.pooled is None else text.pooled[:1]
        encoded.append(Text(states=states, pooled=pooled))
    return encoded


def encode_ids(
    model: Model,
    ids: dict[str, Tensor],
    weights: dict[str, Tensor] | None = None,
    *,
    clip_skip: int = 1,
) -> Text:
    """Rows of token ids, (rows, tokens) for each text encoder, in the U-Net's dtype.

    weights: the emphasis of each token; None is 1 for all. A row's vectors are multiplied by them,
        and then by one number that gives the row the mean it had.
    """
    states: list[Tensor] = []
    pooled: Tensor | None = None
    for part, encoder in model.encoders.items():
        output = encoder.network(ids[part].to(model.device), output_hidden_states=True)
        vectors = _layer(model, encoder, output, clip_skip)
        if weights is not None and bool((weights[part] != 1).any()):
            weighted = vectors * weights[part].to(vectors)[:, :, None]
            means = (each.mean((1, 2), keepdim=True) for each in (vectors, weighted))
            vectors = weighted * torch.div(*means)
        states.append(vectors)
        if part == model.family.pooled:
            pooled = output.text_embeds.to(model.dtype)
    joined = torch.cat(states, dim=-1) if len(states) > 1 else states[0]
    return Text(states=joined.to(model.dtype), pooled=pooled)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Token ids of one chunk, start, end and padding among them, and the emphasis of each."""

    ids: list[int]
    weights: list[float]


def split_into_chunks(model: Model, text: str) -> dict[str, list[Chunk]]:
    """The chunks of ``text`` for each text encoder, by its part, equally many for all.

    A chunk has ``model.token_limit`` tokens: start, up to limit - 2, end, padding. A new one begins
    at BREAK, and where one is full: after its last comma, if that is among its last
    ``COMMA_WITHIN`` tokens. The empty text is one chunk.
    """
    stretches = parse_emphasis(text)
    return {part: _chunks(model, encoder, stretches) for part, encoder in model.encoders.items()}


def count_chunks(model: Model, text: str) -> int:
    """How many chunks a prompt needs.

    Raises:
        ComposerError: it changes from step to step, or cannot be read.
    """
    check_unchanging(text)
    return max(map(len, split_into_chunks(model, text).values()))


def first_chunks(model: Model, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids of the first chunk of each prompt, (prompts, tokens) for each text encoder; every
    bracket is part of the text, as captions have them."""
    found: dict[str, Tensor] = {}
    for part, encoder in model.encoders.items():
        split = [_chunks(model, encoder, [Emphasised(text=prompt)])[0] for prompt in prompts]
        found[part] = torch.tensor([chunk.ids for chunk in split])
    return found


def _chunks(model: Model, encoder: TextEncoder, stretches: Iterable[Emphasised]) -> list[Chunk]:
    tokenizer, room = encoder.tokenizer, model.token_limit - 2
    comma: int = tokenizer.convert_tokens_to_ids(",</w>")
    chunks: list[Chunk] = []
    ids: list[int] = []
    weights: list[float] = []
    after_comma = 0  # where the words after the last comma begin; 0 without one

    def finish(upto: int) -> None:
        """The first so many tokens are a chunk; the others begin the next one."""
        nonlocal after_comma
        row = [tokenizer.bos_token_id, *ids[:upto], tokenizer.eos_token_id]
        padding = model.token_limit - len(row)
        row += [tokenizer.pad_token_id] * padding
        chunks.append(Chunk(ids=row, weights=[1.0, *weights[:upto], 1.0, *[1.0] * padding]))
        del ids[:upto], weights[:upto]
        after_comma = 0

    for stretch in stretches:
        if stretch.new_chunk:
            finish(len(ids))
        tokens: list[int] = tokenizer(
            stretch.text, add_special_tokens=False, verbose=False
        ).input_ids
        for token in tokens:
            if len(ids) == room:
                near = after_comma and room - after_comma < COMMA_WITHIN and token != comma
                finish(after_comma if near else room)
            ids.append(token)
            weights.append(stretch.weight)
            if token == comma:
                after_comma = len(ids)
    if ids or not chunks:
        finish(len(ids))
    return chunks


def _layer(model: Model, encoder: TextEncoder, output: Any, clip_skip: int) -> Tensor:
    """The layer that the family reads, or an earlier one: (rows, tokens, width)."""
    layers = int(encoder.network.config.num_hidden_layers)
    if clip_skip > layers:
        raise ComposerError(
            f"Clip skip {clip_skip} is more than the {layers} layers of this model's text encoder. "
            f"Use 1 to {layers}."
        )
    skip = max(clip_skip, model.family.last)
    if skip == 1:
        return output.last_hidden_state
    states: Tensor = output.hidden_states[-skip]
    return states if model.family.last > 1 else encoder.network.final_layer_norm(states)
