"""Which attention kernel trains fastest."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from torch.nn.attention import SDPBackend, sdpa_kernel

MOST_TOKENS = 1024


def attention_for_backward(device: str, tokens: int = 0) -> AbstractContextManager[object]:
    """The attention to train with, on `device`, over at most so many `tokens`.

    On a CPU the backward pass of fused attention takes ten times as long as plain products; but
    plain products keep every (tokens, tokens) map, which does not fit for large pictures.
    """
    plain = device == "cpu" and tokens <= MOST_TOKENS
    return cast(Any, sdpa_kernel)(SDPBackend.MATH) if plain else nullcontext()
