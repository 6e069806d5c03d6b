"""What tiny tokenizers of bytes share."""

from __future__ import annotations


def byte_characters() -> list[str]:
    """The 256 printable characters by which byte-level BPE writes bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
