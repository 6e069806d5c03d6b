"""The tensors of a LoRA file, brought together by the module that they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from composer.errors import ComposerError
from composer.experts.formats import DORA, KINDS, Key, find_embeddings, parse_key
from composer.experts.header import Header

Module = tuple[str | None, str]
"""A part of the model, if the file says which, and a module's name as the file spells it."""

# What goes with several kinds of adapter, or with none.
_COMMON = ("alpha", "bias", "diff_b", *DORA)


@dataclass(kw_only=True)
class Group:
    """The tensors of one module: slot → tensor name."""

    key: Key
    tensors: dict[str, str] = field(default_factory=dict[str, str])

    def kinds(self) -> set[str]:
        """The kinds of adapter whose tensors these are; empty for an alpha alone."""
        alone = {KINDS[slot] for slot in self.tensors if slot in KINDS and slot not in _COMMON}
        return alone or ({KINDS["diff_b"]} if "diff_b" in self.tensors else set())


def group_tensors(header: Header) -> tuple[dict[Module, Group], list[str]]:
    """The tensors of each module, and those whose name says nothing.

    Raises:
        ComposerError: two tensors say the same of a module.
    """
    groups: dict[Module, Group] = {}
    unknown: list[str] = []
    embeddings = find_embeddings(header.tensors)
    for name in header.tensors:
        if name in embeddings:
            continue
        key = parse_key(name)
        if key is None:
            unknown.append(name)
            continue
        group = groups.setdefault((key.part, key.module), Group(key=key))
        if key.slot in group.tensors:
            raise broken(header, f"has {key.module!r} twice, also as {name!r}")
        group.tensors[key.slot] = name
    return groups, unknown


def changed_by(groups: Mapping[Module, Group]) -> frozenset[Module]:
    """The modules that a file changes, whether a model has them or not."""
    return frozenset(module for module, group in groups.items() if group.kinds())


def broken(header: Header, reason: str) -> ComposerError:
    """The error for a damaged file."""
    return ComposerError(f"{header.path}: {reason}. Download or train the file again.")
