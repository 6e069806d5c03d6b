"""Prompts into text vectors: chunks of the tokenizer's own length, as many as the prompt needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from composer.diffusion.model import Model
from composer.errors import ComposerError


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Text vectors ``(1, chunks * token_limit, cross_attention_dim)`` with and without the prompt.

    ``negative`` is None where no guidance is wanted; otherwise both have the same length.
    """

    positive: torch.Tensor
    negative: torch.Tensor | None

    @property
    def rows(self) -> torch.Tensor:
        """(1 or 2, tokens, dim): where there is guidance, without the prompt first."""
        if self.negative is None:
            return self.positive
        return torch.cat([self.negative, self.positive])


@torch.no_grad()
def encode_prompts(
    model: Model, prompt: str, negative_prompt: str | None, *, clip_skip: int = 1
) -> Conditioning:
    """Encode a prompt and, unless it is None, a negative prompt, padded to equal chunk counts.

    ``clip_skip`` counts as in A1111: 1 is the last layer, 2 the one before it; the final layer
    norm is applied to either.
    """
    chunks = split_into_chunks(model, prompt)
    if negative_prompt is None:
        return Conditioning(positive=_encode(model, chunks, clip_skip), negative=None)
    negative = split_into_chunks(model, negative_prompt)
    empty = split_into_chunks(model, "")
    longest = max(len(chunks), len(negative))
    chunks, negative = (c + empty * (longest - len(c)) for c in (chunks, negative))
    return Conditioning(
        positive=_encode(model, chunks, clip_skip), negative=_encode(model, negative, clip_skip)
    )


def split_into_chunks(model: Model, text: str) -> list[list[int]]:
    """Token ids of ``text`` in rows of ``model.token_limit``: start, up to limit - 2, end, padding.

    A row ends between words where it can. The empty text is one row.
    """
    tokenizer = model.tokenizer
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    ends_word = [token.endswith("</w>") for token in tokenizer.convert_ids_to_tokens(ids)]
    room = model.token_limit - 2
    rows: list[list[int]] = []
    start = 0
    while start < len(ids) or not rows:
        end = min(start + room, len(ids))
        if end < len(ids):
            whole = [i + 1 for i in range(start, end) if ends_word[i]]
            end = whole[-1] if whole else end
        row = [tokenizer.bos_token_id, *ids[start:end], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (model.token_limit - len(row)))
        start = end
    return rows


def _encode(model: Model, chunks: list[list[int]], clip_skip: int) -> torch.Tensor:
    """Text vectors ``(1, chunks * token_limit, dim)`` in the U-Net's dtype."""
    layers = int(model.text_encoder.config.num_hidden_layers)
    if clip_skip > layers:
        raise ComposerError(
            f"Clip skip {clip_skip} is more than the {layers} layers of this model's text encoder. "
            f"Use 1 to {layers}."
        )
    ids = torch.tensor(chunks, device=model.device)
    output = model.text_encoder(ids, output_hidden_states=True)
    vectors: torch.Tensor = output.last_hidden_state  # (chunks, token_limit, dim)
    if clip_skip > 1:
        vectors = model.text_encoder.final_layer_norm(output.hidden_states[-clip_skip])
    return vectors.reshape(1, -1, vectors.shape[-1]).to(model.dtype)
