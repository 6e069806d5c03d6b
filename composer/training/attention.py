"""Which attention kernel trains fastest."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MOST_TOKENS = 1024


def attention_for_backward(device: str, tokens: int = 0) -> AbstractContextManager[object]:
    """The attention to train with, on `device`, over at most so many `tokens`.

    On a CPU the backward pass of fused attention takes ten times as long as plain products; but
    plain products keep every (tokens, tokens) map, which does not fit for large pictures.
    """
    plain = device == "cpu" and tokens <= MOST_TOKENS
    return _plain() if plain else nullcontext()


_FUSED = functional.scaled_dot_product_attention
_lock, _thread = threading.Lock(), threading.local()
_users = 0


@contextmanager
def _plain() -> Generator[None]:
    """Attention by plain products, in this thread alone; torch's `sdpa_kernel` rules over all, and
    what is painted or expanded beside a training would depend on it. The numbers are the same.

    No mode of PyTorch's does this: it would take it off within a backward pass, in which
    checkpointing runs layers again.
    """
    global _users
    with _lock:
        _users += 1
        functional.scaled_dot_product_attention = _by_thread
    depth = getattr(_thread, "depth", 0)
    _thread.depth = depth + 1
    try:
        yield
    finally:
        _thread.depth = depth
        with _lock:
            _users -= 1
            if not _users:
                functional.scaled_dot_product_attention = _FUSED


def _by_thread(*args: Any, **kwargs: Any) -> Tensor:
    # while compiling, it is the training that is compiled
    plain = torch.compiler.is_compiling() or getattr(_thread, "depth", 0)
    return _plain_attention(*args, **kwargs) if plain else _FUSED(*args, **kwargs)


def _plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` as its kernel MATH computes it, under autocast too."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        closed = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = closed.masked_fill_(~attn_mask, float("-inf"))
    tensors = [query, key, value, attn_mask]
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        tensors = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
    plain: Any = torch.ops.aten._scaled_dot_product_attention_math  # pyright: ignore[reportPrivateUsage]
    with torch.autocast("cpu", enabled=False):
        return plain(*tensors, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)[0]
