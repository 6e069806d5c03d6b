"""Read what a LoRA's header says of it: our own keys, modelspec's and kohya's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, cast

from composer.experts.base_model import guess_base
from composer.experts.formats import DORA, KINDS, Key, find_embeddings, parse_key
from composer.experts.groups import Module, changed_by, group_tensors
from composer.experts.header import Header
from composer.experts.info import ROLES, LoraInfo
from composer.experts.tools import tool_named
from composer.families import FAMILIES, STABLE_DIFFUSION_2
from composer.outside import parse_object

MAX_TAGS = 24
_RANKS = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a2", "q_layer")
"""The slots whose first side is the rank."""
_MAX_EXTRA = 1000
_BASES = {
    **{family.kohya: family.name for family in FAMILIES},
    **{f"{family.modelspec}/lora": family.name for family in FAMILIES},
    "sd_v2_768_v": STABLE_DIFFUSION_2.name,
}


def read_info(header: Header) -> LoraInfo:
    """Everything that the header says of a LoRA; the file's own name is its title of last resort.

    Shapes go before claims where both name the base, but for our own `composer.base`.

    Raises:
        ComposerError: two tensors say the same of a module.
    """
    metadata = header.metadata
    keys = {name: key for name in header.tensors if (key := parse_key(name)) is not None}

    def first(*keys: str) -> str:
        return next((metadata[key].strip() for key in keys if metadata.get(key, "").strip()), "")

    role = first("composer.role").lower()
    claimed = first("modelspec.architecture", "ss_base_model_version")
    return LoraInfo(
        trigger=first("composer.trigger", "modelspec.trigger_phrase"),
        role=role if role in ROLES else "other",
        base=first("composer.base") or guess_base(header, keys) or _BASES.get(claimed, claimed),
        rank=_commonest_rank(header, keys),
        title=first("composer.title", "modelspec.title", "ss_output_name") or header.path.stem,
        description=first("composer.description", "modelspec.description"),
        format=_commonest(key.format for key in keys.values())[0] if keys else "",
        kinds=_kinds(keys.values()),
        embeddings=tuple(dict.fromkeys(find_embeddings(header.tensors).values())),
        weight=parse_weight(first("composer.weight", "modelspec.lora_default_weight")),
        negative=first("composer.negative"),
        tags=_top_tags(metadata.get("ss_tag_frequency", "")),
        tool=None
        if role in ROLES and role != "other"
        else tool_named(
            [
                header.path.stem,
                *(metadata.get(key, "") for key in ("modelspec.title", "ss_output_name")),
            ]
        ),
        extra={
            key: value
            for key, value in metadata.items()
            # What is longer is not for people: tag counts, bucket lists, cover pictures.
            if len(value) <= _MAX_EXTRA and not key.startswith("composer.")
        },
        modules=_kept_once(changed_by(group_tensors(header)[0])),
    )


def trainer_of(header: Header) -> str:
    """The program that wrote a file, as far as its metadata shows; empty if it does not."""
    metadata = header.metadata
    if "composer.title" in metadata:
        return "Composer"
    if any(key.startswith("ot_") for key in metadata):
        return "OneTrainer"
    name = parse_table(metadata.get("software", "")).get("name")  # ai-toolkit
    if isinstance(name, str):
        return name[:60]
    network = metadata.get("ss_network_module", "")
    if network:
        trainer = "LyCORIS" if network.startswith("lycoris") else "kohya's sd-scripts"
        return f"{trainer} ({network[:60]})"
    if "lora_adapter_metadata" in metadata:
        return "diffusers"
    return metadata.get("modelspec.implementation", "")[:60]


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


@lru_cache(maxsize=256)
def _kept_once(modules: frozenset[Module]) -> frozenset[Module]:
    """The same set in memory for equal ones: the files of a trainer change the same modules."""
    return modules


def _commonest_rank(header: Header, keys: Mapping[str, Key]) -> int:
    ranks = Counter(
        shape[0]
        for name, key in keys.items()
        if key.slot in _RANKS and len(shape := header.tensors[name].shape) > 1
    )
    return max(ranks, key=lambda rank: (ranks[rank], rank), default=0)


def _kinds(keys: Iterable[Key]) -> tuple[str, ...]:
    """The kinds of adapter by how many modules have them; DoRA and biases go with others."""
    slots = {"mid": "Tucker", "hada_t1": "Tucker", "lokr_t2": "Tucker", "bm": "Tucker"}
    slots |= dict.fromkeys(("bias", "diff_b"), "biases") | dict.fromkeys(DORA, "DoRA")
    found = {(slots.get(key.slot) or KINDS.get(key.slot), key.part, key.module) for key in keys}
    return _commonest(kind for kind, *_ in sorted(found, key=str) if kind is not None)


def _commonest(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for word, _ in Counter(words).most_common())


def _top_tags(text: str) -> tuple[str, ...]:
    """kohya's `ss_tag_frequency`: JSON of folder → tag → count."""
    counts = Counter[str]()
    for tags in parse_table(text).values():
        if isinstance(tags, dict):
            for tag, count in cast("Mapping[str, object]", tags).items():
                if type(count) is int:
                    counts[tag.strip()] += count
    return tuple(tag for tag, _ in counts.most_common(MAX_TAGS) if tag)
