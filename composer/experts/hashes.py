"""The two hashes by which a LoRA file is known."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

SHORT = 12
"""Digits of a hash, as A1111 shows them."""

LEAST_DIGITS = 8
"""Fewer identify too little to find a file by."""


def file_hash(data: bytes) -> str:
    """SHA-256 of the whole file (AutoV2 on model sites, as its first ten digits)."""
    return hashlib.sha256(data).hexdigest()


def tensor_hash(data: bytes) -> str:
    """SHA-256 of the tensors alone (kohya's `sshs_model_hash`, AutoV3).

    It stays the same when someone edits the metadata.
    """
    length = int.from_bytes(data[:8], "little")
    return hashlib.sha256(memoryview(data)[8 + length :]).hexdigest()


def file_hash_of(path: Path) -> str:
    """The first of a file that is read piece by piece, for whoever wants nothing else of it."""
    with path.open("rb") as file:
        return _digest(file)


def tensor_hash_of(path: Path) -> str:
    """The second, likewise."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    """SHA-256 of what is left to read."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
