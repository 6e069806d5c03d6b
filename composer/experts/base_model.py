"""Which model a LoRA seems to be made for, judged by the shapes of its tensors.

Metadata is often missing or wrong; the width of the text that the U-Net's cross-attention reads
is neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from composer.experts.formats import Key
from composer.experts.header import Header
from composer.families import SDXL, find_family

# The second is lora_diffusion's first attn2.to_k; see lora_diffusion.py.
_CROSS_KEY = re.compile(r"attn2[._]to_k$|^:6$")
_ON_INPUT = ("down", "hada_w1_b", "a2", "q_layer", "diff")
_ON_INPUT_PARTS = ("lokr_w1", "lokr_w1_b", "lokr_w2", "lokr_w2_b")
_TEXT_QUERY = re.compile(r"self_attn[._]q_proj$")


def guess_base(header: Header, keys: Mapping[str, Key]) -> str:
    """The family a LoRA seems to be made for; empty if its shapes do not show it."""
    text_query = None
    for (part, module), width in _widths(header, keys).items():
        if _CROSS_KEY.search(module):
            return find_family(width).name
        if part == SDXL.pooled:
            return SDXL.name
        if _TEXT_QUERY.search(module):
            text_query = width
    # Only the text encoder was trained: its own width is what the U-Net reads, except in SDXL.
    return find_family(text_query).name if text_query is not None else ""


def _widths(header: Header, keys: Mapping[str, Key]) -> dict[tuple[str | None, str], int]:
    """How wide the input of each module is, where one of its tensors shows it."""
    widths: dict[tuple[str | None, str], int] = {}
    for name, key in keys.items():
        shape, module = header.tensors[name].shape, (key.part, key.module)
        if len(shape) > 1 and key.slot in _ON_INPUT:
            widths[module] = shape[1]
        elif len(shape) > 1 and key.slot in _ON_INPUT_PARTS:  # the input is w1's times w2's
            widths[module] = widths.get(module, 1) * shape[1]
    return widths
