"""The header of a safetensors file, checked before any tensor is read.

A safetensors file is eight bytes (the header's length, little endian), the header (JSON: name →
dtype, shape, begin and end in the data), and the data. The format's own library checks offsets
too, but not how many tensors there are: a 38 MB file of 600 000 empty tensors keeps it busy for 17
seconds. Here everything is checked on the header alone, within limits that real LoRA files keep.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from composer.errors import ComposerError
from composer.experts.magic import REFUSED_SUFFIXES, describe_foreign, is_safetensors_start
from composer.outside import MAX_JSON, parse_object

MAX_HEADER_BYTES = MAX_JSON
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8
MAX_SIZE = 2**31

DTYPE_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor as the header declares it; `begin` and `end` count from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """A checked safetensors header: the data starts at byte `data_start` of the file."""

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check the header of the safetensors file at `path`; no tensor is read.

    Raises:
        ComposerError: the file is missing, is something else (a pickle, a web page, a git-lfs
            pointer), is cut off, or its header is not a valid one.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ComposerError(f"{path}: is not a file. Give the path of a .safetensors file.")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(64)
            # Longer lengths are refused by parse_header, from the first bytes alone.
            length = min(int.from_bytes(start[:8], "little"), MAX_HEADER_BYTES)
            head = start + file.read(max(0, 8 + length - len(start)))
    except FileNotFoundError:
        raise ComposerError(
            f"{path}: there is no such file. Check the path, or rescan the LoRA folders."
        ) from None
    except OSError as error:
        raise ComposerError(f"{path}: cannot be read ({error}). Check its rights.") from error
    return parse_header(head, size=size, path=path)


def parse_header(head: bytes, *, size: int, path: Path) -> Header:
    """Check the header in `head`, the first bytes of a file of `size` bytes.

    `path` is what messages call the file. Raises ComposerError as `read_header` does.
    """
    if size == 0:
        raise ComposerError(f"{path}: is empty (0 bytes). Download or train it again.")
    foreign = None if is_safetensors_start(head) else describe_foreign(head)
    if foreign is not None:
        raise ComposerError(f"{path}: {foreign}")
    if path.suffix.lower() in REFUSED_SUFFIXES:
        raise ComposerError(
            f"{path}: Composer opens .safetensors files only, since {path.suffix} files can run "
            "any program when they are opened. Look for the .safetensors version of this LoRA."
        )
    if not is_safetensors_start(head):
        raise ComposerError(f"{path}: is not a safetensors file. Download or train it again.")
    length = int.from_bytes(head[:8], "little")
    if length > size - 8:
        raise _damaged(path, f"the file ends inside its header ({size} bytes)")
    if length > MAX_HEADER_BYTES:
        raise _damaged(path, f"its header claims {length} bytes; {MAX_HEADER_BYTES} is the most")
    entries = _parse_json(head[8 : 8 + length], path)
    metadata = _check_metadata(entries.pop("__metadata__", {}), path)
    if len(entries) > MAX_TENSORS:
        raise _damaged(path, f"it declares {len(entries)} tensors; {MAX_TENSORS} is the most")
    tensors = {name: _check_entry(name, entry, path) for name, entry in entries.items()}
    _check_layout(tensors, size - 8 - length, path)
    return Header(path=path, tensors=tensors, metadata=metadata, data_start=8 + length)


def _damaged(path: Path, reason: str) -> ComposerError:
    return ComposerError(
        f"{path}: is damaged or cut off: {reason}. Download or train the file again."
    )


def _parse_json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        return parse_object(text.decode("utf-8"), unique=True)
    except ValueError as error:
        raise _damaged(path, f"its header is not valid JSON ({error})") from error


def _check_metadata(metadata: object, path: Path) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata is not a table")
    pairs = cast("dict[str, object]", metadata)
    if not all(isinstance(value, str) for value in pairs.values()):
        raise _damaged(path, "its metadata holds something that is not text")
    return cast("dict[str, str]", pairs)


def _counts(values: object) -> tuple[int, ...] | None:
    """A JSON list of sizes; None if it is anything else (`true` is an int to Python)."""
    if not isinstance(values, list):
        return None
    items = cast("list[object]", values)
    counts = tuple(item for item in items if type(item) is int and 0 <= item < 2**63)
    return counts if len(counts) == len(items) else None


def _check_entry(name: str, entry: object, path: Path) -> TensorEntry:
    if not isinstance(entry, dict):
        raise _damaged(path, f"tensor {name!r} has no description")
    fields = cast("dict[str, object]", entry)
    dtype = fields.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _damaged(path, f"tensor {name!r} has the unknown number format {str(dtype)[:40]!r}")
    shape = _counts(fields.get("shape"))
    if shape is None or len(shape) > MAX_DIMENSIONS or any(n > MAX_SIZE for n in shape):
        raise _damaged(path, f"tensor {name!r} has an impossible shape")
    offsets = _counts(fields.get("data_offsets"))
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"tensor {name!r} has impossible offsets")
    begin, end = offsets
    if prod(shape) * DTYPE_BYTES[dtype] != end - begin:
        raise _damaged(path, f"the shape of tensor {name!r} does not match its {end - begin} bytes")
    return TensorEntry(dtype=dtype, shape=shape, begin=begin, end=end)


def _check_layout(tensors: Mapping[str, TensorEntry], data_bytes: int, path: Path) -> None:
    """The tensors fill the data without gap or overlap, to its last byte."""
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise _damaged(path, f"tensor {name!r} leaves a gap or overlaps another")
        position = entry.end
    if position != data_bytes:
        raise _damaged(path, f"it should hold {position} bytes of tensors and holds {data_bytes}")
