"""Ways of fusing as benchmarks are asked for them, and as they call them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from composer.fusions import Gates
from composer.fusions.registry import read_recipe
from composer.studio.axes import ALONE, BARE

ALONE_TITLE, BARE_TITLE = "Each LoRA alone", "No LoRAs"
_TITLES = {BARE: BARE_TITLE, ALONE: ALONE_TITLE, Gates.kind: Gates.title}


def read_ways(text: str, usual: Sequence[str]) -> tuple[str, ...]:
    """The ways of "weighted,ties:density=0.3,rank=8"; the usual ones for no text.

    Raises:
        ComposerError: there is no such way.
    """
    parts: list[str] = re.split(r",(?! *[\w-]+=)", text)  # a parameter follows a comma too
    named = [part.strip() for part in parts if part.strip()]
    found = tuple(dict.fromkeys(named)) or tuple(usual)
    for way in found:
        if way not in usual:
            read_recipe(way)
    return found


def title_of_way(way: str) -> str:
    """For people."""
    return _TITLES.get(way) or read_recipe(way).label
