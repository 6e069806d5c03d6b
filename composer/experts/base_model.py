"""Which model a LoRA seems to be made for, judged by the shapes of its tensors.

Metadata is often missing or wrong; the width of the text that the U-Net's cross-attention reads
is neither.
"""

from __future__ import annotations

import re

from composer.experts.formats import parse_key
from composer.experts.header import Header
from composer.families import SDXL, find_family

_CROSS_KEY = re.compile(r"attn2[._]to_k$")
_TEXT_QUERY = re.compile(r"self_attn[._]q_proj$")


def guess_base(header: Header) -> str:
    """The family a LoRA seems to be made for; empty if its shapes do not show it."""
    text_query = None
    for name, entry in header.tensors.items():
        key = parse_key(name)
        if key is None or key.slot != "down" or len(entry.shape) < 2:
            continue
        if _CROSS_KEY.search(key.module):
            return find_family(entry.shape[1]).name
        if key.part == SDXL.pooled:
            return SDXL.name
        if _TEXT_QUERY.search(key.module):
            text_query = entry.shape[1]
    # Only the text encoder was trained: its own width is what the U-Net reads, except in SDXL.
    return find_family(text_query).name if text_query is not None else ""
