"""When there is not enough memory for a picture."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from composer.diffusion.request import Request
from composer.errors import ComposerError

Piece = TypeVar("Piece")


def within_memory(pieces: Iterable[Piece], request: Request) -> Iterator[Piece]:
    """The same pieces; if memory runs out over them, ComposerError, with the memory free again."""
    try:
        yield from pieces
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return
    # Only here, for an error that is still being handled holds on to all that filled the memory.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    size = "the model's own size"
    if request.width is not None and request.height is not None:
        size = f"{request.width}×{request.height} pixels"
    fewer = " fewer of them at once, or" if request.count > 1 else ""
    raise ComposerError(
        f"There is not enough memory for pictures of {size}. Ask for{fewer} a smaller size, or end "
        "other programs that use this device."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on CPUs PyTorch says so in words alone."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)
