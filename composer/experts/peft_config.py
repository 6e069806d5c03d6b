"""The strength of a LoRA that PEFT wrote: alpha lies in a config, not among the tensors.

PEFT writes `adapter_config.json` beside its file; diffusers writes the same fields, with the part
before each name, into the header's metadata.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from composer.errors import ComposerError
from composer.experts.header import Header
from composer.experts.metadata import parse_table

_DIFFUSERS_KEY = "lora_adapter_metadata"
_MAX_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The fields of a `peft.LoraConfig` that decide how strong each module's factors are."""

    path: Path
    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse what the factors alone cannot express."""
        kind = self.fields.get("peft_type", "LORA")
        if kind != "LORA":
            raise ComposerError(
                f"{self.path}: its PEFT type is {str(kind)[:40]}, which Composer does not read. "
                "Use a LORA adapter."
            )
        if self.fields.get("use_dora"):
            raise ComposerError(f"{self.path}: is a DoRA. Use the plain LoRA, if there is one.")

    def alpha(self, module: str, rank: int) -> float:
        """Alpha of a module, by `alpha_pattern` or for all; scale is alpha / rank.

        With `use_rslora` (Kalajdzievski 2023) scale is alpha / √rank.
        """
        alpha = self.fields.get("lora_alpha", rank)
        for key, value in self._patterns().items():
            if module == key or module.endswith(f".{key}"):
                alpha = value
                break
        try:
            alpha = float(alpha)
        except (TypeError, ValueError, OverflowError):
            raise ComposerError(f"{self.path}: alpha {str(alpha)[:40]!r} is no number.") from None
        return alpha * math.sqrt(rank) if self.fields.get("use_rslora") else alpha

    def _patterns(self) -> dict[str, Any]:
        """`alpha_pattern`: the end of a module's name → its alpha.

        PEFT lets a key be any regular expression. One from a stranger's file can keep a processor
        busy for ever, so only plain names are read.
        """
        patterns = cast("dict[str, Any]", self.fields.get("alpha_pattern") or {})
        plain = {key.removeprefix("^").replace("\\.", "."): patterns[key] for key in patterns}
        for key in plain:
            if not re.fullmatch(r"[\w.]+", key):
                raise ComposerError(
                    f"{self.path}: alpha_pattern {key[:60]!r} is an expression; write out the "
                    "names of the modules instead."
                )
        return plain


def beside(path: Path) -> PeftConfig:
    """The `adapter_config.json` beside a PEFT file.

    Raises:
        ComposerError: it is missing or cannot be read.
    """
    config = path.with_name("adapter_config.json")
    try:
        fields = parse_table(config.read_bytes()) if config.stat().st_size <= _MAX_BYTES else {}
    except OSError:
        fields = {}
    if not fields:
        raise ComposerError(
            f"{path}: is a PEFT adapter, and adapter_config.json, which says how strong it is, "
            "does not lie beside it or cannot be read. Put it there; if it is lost, write "
            '{"peft_type": "LORA", "lora_alpha": 8} with the alpha it was trained with.'
        )
    return PeftConfig(path=config, fields=fields)


def within(header: Header) -> Mapping[str, PeftConfig]:
    """The configs that diffusers put into the header, by part of the model ("" if it is alone)."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in parse_table(header.metadata.get(_DIFFUSERS_KEY, "")).items():
        # A U-Net saved alone has no part before its fields.
        part, _, field = name.rpartition(".")
        parts.setdefault(part, {})[field] = value
    return {part: PeftConfig(path=header.path, fields=fields) for part, fields in parts.items()}
