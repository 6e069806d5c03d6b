"""What is known about a LoRA apart from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from composer.errors import ComposerError
from composer.experts.groups import Module
from composer.experts.tools import Tool

Role = Literal["character", "clothing", "style", "background", "object", "other"]
ROLES: tuple[str, ...] = get_args(Role)
"""What a LoRA adds to a picture: ComposLoRA's five kinds, and the rest."""


@dataclass(frozen=True, kw_only=True)
class LoraInfo:
    """What a LoRA file says of itself, or its user of it.

    Attributes:
        trigger: the words that call it up in a prompt; empty if none are known.
        role: one of ROLES.
        base: the model it is made for, as far as its metadata or shapes show.
        rank: the commonest rank of its factors.
        title: a name for people.
        description: a text for people.
        preview: a picture that lies beside the file.
        format: the naming of its tensors ("kohya", "diffusers", ...).
        kinds: of adapter, the commonest first ("LoRA", "LoHa", "DoRA", ...).
        embeddings: words of textual inversion that it holds besides, for prompts.
        weight: the strength its user or maker prefers.
        negative: words for the negative prompt.
        notes: the user's own.
        tags: the commonest tags of its training pictures, commonest first.
        extra: further metadata by the keys it has in the file.
        modules: what it changes, as it spells it.
        tool: how it wants a model to sample, where it is for few steps and not for what is shown.
        share: of these, how many the model at hand has; None while there is none.
    """

    trigger: str = ""
    role: str = "other"
    base: str = ""
    rank: int = 0
    title: str = ""
    description: str = ""
    preview: Path | None = None
    format: str = ""
    kinds: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    weight: float = 1.0
    negative: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict[str, str])
    modules: frozenset[Module] = field(default=frozenset(), repr=False, compare=False)
    tool: Tool | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        """Refuse a role that is not one of ROLES."""
        if self.role not in ROLES:
            raise ComposerError(f"LoRA role {self.role!r}: choose one of {', '.join(ROLES)}.")
