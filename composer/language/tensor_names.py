"""Today's names of the tensors in a MixLoRA file, for those of the first files.

Today's are those of `composer.mixlora.names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from composer.language.mixlora_config import LEGACY
from composer.mixlora.names import ROUTER

Thing = TypeVar("Thing")

_LEGACY_ROUTER = re.compile(r"(mixlora\.layers\.\d+)\.gate\.weight")
_LEGACY_EXPERT = re.compile(r"(mixlora\.layers\.\d+)\.experts\.(\d+)\.(\w+)\.(lora_[AB]\.weight)")


def modern(named: Mapping[str, Thing]) -> dict[str, Thing]:
    """The same tensors, or their shapes, by today's names."""
    return {_modern(name): thing for name, thing in named.items()}


def _modern(name: str) -> str:
    if router := _LEGACY_ROUTER.fullmatch(name):
        return f"{router[1]}.mlp.{ROUTER}"
    if expert := _LEGACY_EXPERT.fullmatch(name):
        layer, number, linear, end = expert.groups()
        return f"{layer}.mlp.{LEGACY.get(linear, linear)}.experts.{number}.{end}"
    return name
