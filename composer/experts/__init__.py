"""A LoRA file becomes an expert: header checks, formats, hashes, metadata, folders of LoRAs.

The names below are imported when first used: a library of folders needs no torch, and a page that
only shows it starts without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from composer.experts.card import LORAS as LORAS, Card as Card
    from composer.experts.expert import Expert as Expert
    from composer.experts.header import Header as Header, read_header as read_header
    from composer.experts.info import ROLES as ROLES, LoraInfo as LoraInfo
    from composer.experts.library import Library as Library
    from composer.experts.low_rank import LowRank as LowRank
    from composer.experts.module_names import ModuleNames as ModuleNames
    from composer.experts.read import read_expert as read_expert
    from composer.experts.write import write_lora as write_lora

_ROOMS = {
    "card": ("Card", "LORAS"),
    "expert": ("Expert",),
    "header": ("Header", "read_header"),
    "info": ("ROLES", "LoraInfo"),
    "library": ("Library",),
    "low_rank": ("LowRank",),
    "module_names": ("ModuleNames",),
    "read": ("read_expert",),
    "write": ("write_lora",),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
