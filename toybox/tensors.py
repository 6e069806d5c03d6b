"""Named tensors in one safetensors file, read and written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

_FORMAT: Any = safetensors.torch
_OPEN: Any = safetensors.safe_open


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `path`; killed at any moment, the file is whole: the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    _FORMAT.save_file(dict(tensors), part, metadata=dict(metadata) if metadata else None)
    os.replace(part, path)


def load_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of `path` whose names begin with `prefix`, by the rest of their names."""
    with _OPEN(path, "pt") as file:
        return {
            name.removeprefix(prefix): file.get_tensor(name)
            for name in list[str](file.keys())
            if name.startswith(prefix)
        }


def load_metadata(path: Path) -> dict[str, str]:
    """The texts in the head of `path`."""
    with _OPEN(path, "pt") as file:
        return dict(file.metadata() or {})
