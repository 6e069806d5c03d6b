"""Prompts into text vectors, as A1111 does it: words weighted by their emphasis, in chunks of the
tokenizer's own length, as many as the prompt needs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from composer.diffusion.editing import check_unchanging
from composer.diffusion.emphasis import Emphasised, parse_emphasis
from composer.diffusion.model import Model, TextEncoder
from composer.errors import ComposerError
from composer.experts.embedding import Embedding, asked_in, split

PLACEHOLDER = 0
"""The id in a token's place whose vector is an embedding's: any that is not the end of the text."""
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
def encode_texts(
    model: Model,
    texts: Sequence[str],
    *,
    clip_skip: int = 1,
    embeddings: Sequence[Embedding] = (),
) -> list[Text]:
    """Text of one row for each of ``texts``, padded to equal chunk counts with empty chunks.

    Other than prompts, they are of one step: no brackets in them change.
    """
    every = [split_into_chunks(model, text, embeddings) for text in texts]
    empty = split_into_chunks(model, "")
    count = max(len(rows) for chunks in every for rows in chunks.values())
    encoded: list[Text] = []
    for chunks in every:
        padded = {part: rows + empty[part] * (count - len(rows)) for part, rows in chunks.items()}
        ids = {part: torch.tensor([row.ids for row in rows]) for part, rows in padded.items()}
        weights = {
            part: torch.tensor([row.weights for row in rows]) for part, rows in padded.items()
        }
        vectors = {
            part: {(n, place): v for n, row in enumerate(rows) for place, v in row.vectors.items()}
            for part, rows in padded.items()
        }
        text = encode_ids(model, ids, weights, vectors, clip_skip=clip_skip)
        states = text.states.reshape(1, -1, text.states.shape[-1])
        # what A1111 and ComfyUI take of a prompt of several chunks
        pooled = None if text.pooled is None else text.pooled[:1]
        encoded.append(Text(states=states, pooled=pooled))
    return encoded


def encode_ids(
    model: Model,
    ids: dict[str, Tensor],
    weights: dict[str, Tensor] | None = None,
    vectors: Mapping[str, Mapping[tuple[int, int], Tensor]] | None = None,
    *,
    clip_skip: int = 1,
) -> Text:
    """Rows of token ids, (rows, tokens) for each text encoder, in the U-Net's dtype.

    weights: the emphasis of each token; None is 1 for all. A row's vectors are multiplied by them,
        and then by one number that gives the row the mean it had.
    vectors: what stands in the place of a token's own, (width,), by its row and place.
    """
    states: list[Tensor] = []
    pooled: Tensor | None = None
    for part, encoder in model.encoders.items():
        with _put_in(encoder, {} if vectors is None else vectors[part]):
            output = encoder.network(ids[part].to(model.device), output_hidden_states=True)
        layer = _layer(model, encoder, output, clip_skip)
        if weights is not None and bool((weights[part] != 1).any()):
            layer = _emphasised(layer, weights[part].to(layer))
        states.append(layer)
        if part == model.family.pooled:
            pooled = output.text_embeds.to(model.dtype)
    joined = torch.cat(states, dim=-1) if len(states) > 1 else states[0]
    return Text(states=joined.to(model.dtype), pooled=pooled)


def _emphasised(layer: Tensor, weights: Tensor) -> Tensor:
    """Vectors (rows, tokens, width) times their weights (rows, tokens), each row with the mean it
    had; a row whose mean is nothing but rounding keeps its scale."""
    weighted = layer * weights[:, :, None]
    before, after = (each.mean((1, 2), keepdim=True) for each in (layer, weighted))
    size = weighted.abs().mean((1, 2), keepdim=True)
    return weighted * torch.where(after.abs() > _NO_MEAN * size, before / after, 1)


_NO_MEAN = 1e-4
"""Of the mean size of a number: a mean below it says nothing, and dividing by it would."""


@contextmanager
def _put_in(
    encoder: TextEncoder, vectors: Mapping[tuple[int, int], Tensor]
) -> Generator[None, None, None]:
    """Meanwhile the encoder reads these vectors, by row and place, and not its tokens' own."""

    def put(module: Any, inputs: Any, output: Tensor) -> Tensor:
        read = output.clone()
        for place, vector in vectors.items():
            read[place] = vector.to(read)
        return read

    handle = encoder.network.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Token ids of one chunk, start, end and padding among them, and the emphasis of each; by their
    places the vectors of embeddings, (width,)."""

    ids: list[int]
    weights: list[float]
    vectors: dict[int, Tensor] = field(default_factory=dict[int, Tensor])


def split_into_chunks(
    model: Model, text: str, embeddings: Sequence[Embedding] = ()
) -> dict[str, list[Chunk]]:
    """The chunks of ``text`` for each text encoder, by its part, equally many for all.

    A chunk has ``model.token_limit`` tokens: start, up to limit - 2, end, padding. A new one begins
    at BREAK, and where one is full: after its last comma, if that is among its last
    ``COMMA_WITHIN`` tokens. The vectors of an embedding are in one chunk. The empty text is one
    chunk.

    Raises:
        ComposerError: emphasis is no number; an embedding is missing or for another model.
    """
    stretches = parse_emphasis(text)
    if missing := asked_in([stretch.text for stretch in stretches], [e.name for e in embeddings]):
        raise ComposerError(
            f"The prompt asks for the embedding {missing[0][:80]!r}, and there is none of that "
            "name here. Take it out of the prompt."
        )
    return {
        part: _chunks(model, part, encoder, stretches, embeddings)
        for part, encoder in model.encoders.items()
    }


def count_chunks(model: Model, text: str) -> int:
    """How many chunks a prompt needs.

    Raises:
        ComposerError: it changes from step to step, or cannot be read.
    """
    check_unchanging(text)
    return max(map(len, split_into_chunks(model, text).values()))


def vectors_for(model: Model, embedding: Embedding) -> dict[str, Tensor]:
    """The vectors of an embedding, (count, width) for each text encoder, by its part.

    Raises:
        ComposerError: they are for other text encoders, or more than a chunk of a prompt holds.
    """
    found, room = dict(embedding.vectors), model.token_limit - 2
    if len(found) == len(model.encoders) == 1:  # what the file calls the only one does not matter
        found = dict(zip(model.encoders, found.values(), strict=True))
    reads = {p: int(e.network.config.hidden_size) for p, e in model.encoders.items()}
    if {part: vectors.shape[1] for part, vectors in found.items()} != reads:
        widths = [vectors.shape[1] for vectors in found.values()]
        sizes = (" and ".join(map(str, some)) for some in (widths, reads.values()))
        raise ComposerError(
            f"{embedding.path}: the vectors of the embedding {embedding.name!r} have {next(sizes)} "
            f"numbers, and those that {model.name!r} reads have {next(sizes)}. Use a version of it "
            "for this model, or take it out of the prompt."
        )
    if embedding.count > room:
        raise ComposerError(
            f"{embedding.path}: the embedding {embedding.name!r} has {embedding.count} vectors, "
            f"and a chunk of a prompt has {room} tokens. Take it out of the prompt."
        )
    return found


def first_chunks(model: Model, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids of the first chunk of each prompt, (prompts, tokens) for each text encoder; every
    bracket is part of the text, as captions have them."""
    found: dict[str, Tensor] = {}
    for part, encoder in model.encoders.items():
        first = [_chunks(model, part, encoder, [Emphasised(text=p)])[0] for p in prompts]
        found[part] = torch.tensor([chunk.ids for chunk in first])
    return found


def _chunks(
    model: Model,
    part: str,
    encoder: TextEncoder,
    stretches: Iterable[Emphasised],
    embeddings: Sequence[Embedding] = (),
) -> list[Chunk]:
    tokenizer, room = encoder.tokenizer, model.token_limit - 2
    comma: int = tokenizer.convert_tokens_to_ids(",</w>")
    by_name = {embedding.name: embedding for embedding in embeddings}
    chunks: list[Chunk] = []
    ids: list[int] = []
    weights: list[float] = []
    vectors: list[Tensor | None] = []
    after_comma = 0  # where the words after the last comma begin; 0 without one

    def finish(upto: int) -> None:
        """The first so many tokens are a chunk; the others begin the next one."""
        nonlocal after_comma
        row = [tokenizer.bos_token_id, *ids[:upto], tokenizer.eos_token_id]
        padding = model.token_limit - len(row)
        row += [tokenizer.pad_token_id] * padding
        chunks.append(
            Chunk(
                ids=row,
                weights=[1.0, *weights[:upto], 1.0, *[1.0] * padding],
                vectors={n: v for n, v in enumerate(vectors[:upto], start=1) if v is not None},
            )
        )
        del ids[:upto], weights[:upto], vectors[:upto]
        after_comma = 0

    def make_room(count: int, *, for_comma: bool = False) -> None:
        """For so many tokens that belong together."""
        if len(ids) == room:
            near = after_comma and room - after_comma < COMMA_WITHIN and not for_comma
            finish(after_comma if near else room)
        if len(ids) + count > room:
            finish(len(ids))

    for stretch in stretches:
        if stretch.new_chunk:
            finish(len(ids))
        for text, name in split(stretch.text, by_name):
            tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            for token in tokens:
                make_room(1, for_comma=token == comma)
                ids.append(token)
                weights.append(stretch.weight)
                vectors.append(None)
                if token == comma:
                    after_comma = len(ids)
            if name:
                own = vectors_for(model, by_name[name])[part]
                make_room(len(own))
                ids += [PLACEHOLDER] * len(own)
                weights += [stretch.weight] * len(own)
                vectors += own
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
