"""The ways in which LoRA files name their tensors: one small module for each.

Each module has `parse(key) -> Key | None`, a pure function of one tensor's name. A file may mix
them, as old trainers did for the two text encoders.
"""

from __future__ import annotations

from composer.experts.formats import comfyui, diffusers, kohya, lora_diffusion, peft, processors
from composer.experts.formats.key import DORA, KINDS, NORMS, Key
from composer.experts.formats.unsupported import find_embeddings, find_unsupported

__all__ = [
    "DORA",
    "FORMATS",
    "KINDS",
    "NORMS",
    "Key",
    "find_embeddings",
    "find_unsupported",
    "parse_key",
]

FORMATS = (
    kohya.parse,
    lora_diffusion.parse,
    comfyui.parse,
    peft.parse,
    processors.parse,
    diffusers.parse,
)
"""Tried in this order; diffusers comes last, since its keys may have no prefix at all."""


def parse_key(key: str) -> Key | None:
    """What the tensor called `key` is, by the first format that knows it."""
    return next((parsed for parse in FORMATS if (parsed := parse(key)) is not None), None)
