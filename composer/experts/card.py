"""What the library shows of one file, without having read its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from composer.experts.info import LoraInfo


@dataclass(frozen=True, kw_only=True)
class Card:
    """One LoRA file of the library. `error` says why it cannot be used; None if it seems sound.

    `name` is unique in the library.
    """

    name: str
    path: Path
    info: LoraInfo
    size: int
    error: str | None = None
