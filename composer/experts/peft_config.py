"""The strength of a LoRA that PEFT wrote: alpha lies in a config, not among the tensors.

PEFT writes `adapter_config.json` beside its file; diffusers writes the same fields, with the part
before each name, into the header's metadata.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from composer.errors import ComposerError
from composer.experts.header import Header
from composer.experts.metadata import parse_table
from composer.experts.patterns import compile_pattern, is_expression

_DIFFUSERS_KEY = "lora_adapter_metadata"
_MAX_BYTES = 2**20
_TYPES = ("LORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT")
_MAX_NAMES, _MAX_EXPRESSIONS = 2000, 50
_MAX_TERMS = 100

# How A and B begin. These leave the model as it is; others take a part of it away at first.
_PLAIN_STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
STARTS = ("pissa", "olora")
"""The beginnings that take a part away that its weight alone decides."""

_Rules = list[tuple[Callable[[str], bool], object]]


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The fields of a `peft.LoraConfig` that decide how strong each module's factors are."""

    path: Path
    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse what the file's tensors and the model's weights cannot tell."""
        kind = self.fields.get("peft_type") or "LORA"
        if kind not in _TYPES:
            raise ComposerError(
                f"{self.path}: its PEFT type is {str(kind)[:40]}, which Composer does not read. "
                f"Use an adapter of type {', '.join(_TYPES)}, or merge it into its model with PEFT."
            )
        start = self.start
        if start not in (*_PLAIN_STARTS, *STARTS):
            raise ComposerError(
                f"{self.path}: began as {start[:40]!r} (init_lora_weights), which took away a part "
                "of the model that the file does not hold. Convert it to a plain LoRA: PEFT's "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...)."
            )

    @property
    def start(self) -> str:
        """How A and B began: `init_lora_weights`, in small letters."""
        given = self.fields.get("init_lora_weights")
        return "true" if given is None else str(given).lower()

    @cached_property
    def numbers(self) -> Mapping[str, float]:
        """What counts in every module beside its tensors, by slot; for OFT alone there is any.

        terms: of Cayley-Neumann's series; 0 for Cayley's own transform. eps: how long a block may
        be (COFT); infinite for any length.
        """
        if self.fields.get("peft_type") != "OFT":
            return {}
        terms = 0.0
        if self.fields.get("use_cayley_neumann", True):
            found = re.match(r"(\d{1,4})\.(\d{1,4})", str(self.fields.get("peft_version")))
            if found is None or (int(found[1]), int(found[2])) < (0, 18):
                raise ComposerError(
                    f"{self.path}: is of a PEFT before 0.18, whose OFT by Cayley-Neumann's series "
                    "was another one. Merge it into its model with the PEFT of its time; if it was "
                    'trained without the series (before PEFT 0.16), write "use_cayley_neumann": '
                    "false."
                )
            given = self.fields.get("num_cayley_neumann_terms", 5)
            terms = self._finite("num_cayley_neumann_terms", given)
            if not 1 <= terms <= _MAX_TERMS:
                raise ComposerError(
                    f"{self.path}: num_cayley_neumann_terms is {terms:g}; 1 to {_MAX_TERMS} are "
                    "read."
                )
        eps = math.inf
        if self.fields.get("coft"):
            eps = self._finite("eps", self.fields.get("eps", 6e-5))
        return {"terms": int(terms), "eps": eps}

    def scale(self, module: str, rank: int | None) -> float:
        """alpha / rank of a module, by `alpha_pattern` or for all; of no rank, by the config's own.

        With `use_rslora` (Kalajdzievski 2023) it is alpha / √rank.
        """
        if rank is None:
            rank = max(1, int(self._number("rank_pattern", module, self.fields.get("r", 1))))
        alpha = self.fields.get("lora_alpha", self.fields.get("alpha", rank))
        alpha = self._number("alpha_pattern", module, alpha)
        return alpha / (math.sqrt(rank) if self.fields.get("use_rslora") else rank)

    def _number(self, pattern: str, module: str, otherwise: object) -> float:
        """Of the first expression in a pattern that means the module."""
        rules = self._alphas if pattern == "alpha_pattern" else self._ranks
        try:
            given = next((value for means, value in rules if means(module)), otherwise)
        except ValueError as error:
            raise self._refused(pattern, f"for {module} {error}") from None
        return self._finite(pattern.removesuffix("_pattern"), given, f" of {module}")

    def _finite(self, what: str, given: object, whose: str = "") -> float:
        try:
            number = float(cast("Any", given))
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ComposerError(
                f"{self.path}: {what} {str(given)[:40]!r}{whose} is no number. Write the one it "
                "was trained with."
            )
        return number

    @cached_property
    def _alphas(self) -> _Rules:
        return self._rules("alpha_pattern")

    @cached_property
    def _ranks(self) -> _Rules:
        return self._rules("rank_pattern")

    def _rules(self, pattern: str) -> _Rules:
        """Of `alpha_pattern` or `rank_pattern`: expressions for modules' names, their numbers."""
        given: object = self.fields.get(pattern) or {}
        if not isinstance(given, dict):
            raise self._refused(pattern, "is no table")
        table = cast("dict[str, object]", given)
        if len(table) > _MAX_NAMES or sum(map(is_expression, table)) > _MAX_EXPRESSIONS:
            raise self._refused(
                pattern, f"has over {_MAX_NAMES} names or {_MAX_EXPRESSIONS} expressions"
            )
        found: _Rules = []
        for key, value in table.items():
            try:
                found.append((compile_pattern(key), value))
            except ValueError as error:
                raise self._refused(pattern, f"{key[:60]!r} {error}") from None
        return found

    def _refused(self, pattern: str, reason: str) -> ComposerError:
        return ComposerError(
            f"{self.path}: {pattern} {reason}; write out the names of the modules instead."
        )


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
