"""A LoRA file becomes an expert: header checks, formats, hashes, metadata, folders of LoRAs."""

from __future__ import annotations

from .card import Card
from .expert import Expert
from .fit import check_fits
from .header import Header, read_header
from .info import ROLES, LoraInfo
from .library import Library
from .low_rank import LowRank
from .module_names import ModuleNames
from .read import read_expert
from .write import write_lora

__all__ = [
    "ROLES",
    "Card",
    "Expert",
    "Header",
    "Library",
    "LoraInfo",
    "LowRank",
    "ModuleNames",
    "check_fits",
    "read_expert",
    "read_header",
    "write_lora",
]
