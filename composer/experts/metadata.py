"""Read what a LoRA's header says of it: our own keys, modelspec's and kohya's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from composer.experts.base_model import guess_base
from composer.experts.formats import parse_key
from composer.experts.header import Header
from composer.experts.info import ROLES, LoraInfo
from composer.outside import parse_object

MAX_TAGS = 24
_MAX_EXTRA = 1000
_BASES = {
    "sd_v1": "Stable Diffusion 1.x",
    "sd_v2": "Stable Diffusion 2.x",
    "sd_v2_768_v": "Stable Diffusion 2.x",
    "sdxl_base_v1-0": "SDXL",
    "stable-diffusion-v1/lora": "Stable Diffusion 1.x",
    "stable-diffusion-xl-v1-base/lora": "SDXL",
}


def read_info(header: Header) -> LoraInfo:
    """Everything that the header says of a LoRA; the file's own name is its title of last resort.

    Shapes go before claims where both name the base, but for our own `composer.base`.
    """
    metadata = header.metadata

    def first(*keys: str) -> str:
        return next((metadata[key].strip() for key in keys if metadata.get(key, "").strip()), "")

    role = first("composer.role").lower()
    claimed = first("modelspec.architecture", "ss_base_model_version")
    return LoraInfo(
        trigger=first("composer.trigger", "modelspec.trigger_phrase"),
        role=role if role in ROLES else "other",
        base=first("composer.base") or guess_base(header) or _BASES.get(claimed, claimed),
        rank=_commonest_rank(header),
        title=first("composer.title", "modelspec.title", "ss_output_name") or header.path.stem,
        description=first("composer.description", "modelspec.description"),
        format=_commonest_format(header),
        weight=parse_weight(first("composer.weight", "modelspec.lora_default_weight")),
        negative=first("composer.negative"),
        tags=_top_tags(metadata.get("ss_tag_frequency", "")),
        extra={
            key: value
            for key, value in metadata.items()
            # What is longer is not for people: tag counts, bucket lists, cover pictures.
            if len(value) <= _MAX_EXTRA and not key.startswith("composer.")
        },
    )


def parse_weight(value: object, *, otherwise: float = 1.0) -> float:
    """A preferred weight; `otherwise` where it is no number, or 0, as A1111 writes for none."""
    try:
        weight = float(cast("str", value))
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return weight if math.isfinite(weight) and weight != 0 else otherwise


def parse_table(text: str | bytes) -> dict[str, Any]:
    """A JSON object that somebody else wrote; empty if it is not one, or no page could show it."""
    try:
        return parse_object(text)
    except ValueError:
        return {}


def _commonest_rank(header: Header) -> int:
    ranks = Counter(
        entry.shape[0]
        for name, entry in header.tensors.items()
        if len(entry.shape) > 1 and (key := parse_key(name)) is not None and key.slot == "down"
    )
    return max(ranks, key=lambda rank: (ranks[rank], rank), default=0)


def _commonest_format(header: Header) -> str:
    formats = Counter(key.format for key in map(parse_key, header.tensors) if key is not None)
    return formats.most_common(1)[0][0] if formats else ""


def _top_tags(text: str) -> tuple[str, ...]:
    """kohya's `ss_tag_frequency`: JSON of folder → tag → count."""
    counts = Counter[str]()
    for tags in parse_table(text).values():
        if isinstance(tags, dict):
            for tag, count in cast("Mapping[str, object]", tags).items():
                if type(count) is int:
                    counts[tag.strip()] += count
    return tuple(tag for tag, _ in counts.most_common(MAX_TAGS) if tag)
