"""Prompts to train gates on, from what the LoRAs say of themselves."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from composer.errors import ComposerError

SUBJECTS = ("a cat", "a dog", "a fox", "a rabbit", "an apple", "a car", "a house", "a tree")
WEARERS = ("a cat", "a dog", "a fox", "a rabbit")
PLACES = (
    "on the beach",
    "at night",
    "in the snow",
    "in the city",
    "in a meadow",
    "in the desert",
    "at sunset",
    "on a white background",
    "on a blue background",
    "on a grey background",
)
"""Ordinary things and places: any Stable Diffusion draws them, the shipped one too."""


@dataclass(frozen=True, kw_only=True)
class Called:
    """An expert as prompts call it: the words that trigger it, and its role."""

    name: str
    trigger: str
    role: str


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts that name all experts, each one alone, and none."""

    composed: tuple[str, ...]
    alone: dict[str, tuple[str, ...]]
    neutral: tuple[str, ...]


def draft_prompts(experts: Sequence[Called], *, count: int = 24, seed: int = 0) -> Prompts:
    """`count` prompts of each kind, in ordinary words around the experts' triggers.

    Raises:
        ComposerError: an expert has no trigger, so no prompt can call it.
    """
    for expert in experts:
        if not expert.trigger.strip():
            raise ComposerError(
                f"The LoRA {expert.name!r} names no trigger word, so no prompt can be drafted: "
                "write the prompts yourself."
            )
    rng = random.Random(f"gate prompts {seed}")

    def drawn(named: Sequence[Called]) -> tuple[str, ...]:
        return _distinct(lambda: _prompt(named, rng), count)

    return Prompts(
        composed=drawn(experts), alone={e.name: drawn([e]) for e in experts}, neutral=drawn([])
    )


def _prompt(experts: Sequence[Called], rng: random.Random) -> str:
    """Subjects side by side, what they wear, where they are, and the style."""
    by_role: dict[str, list[str]] = {}
    for expert in experts:
        by_role.setdefault(expert.role, []).append(expert.trigger.strip())
    worn, places = by_role.pop("clothing", []), by_role.pop("background", [])
    styles = by_role.pop("style", [])
    subjects = [_article(words) for some in by_role.values() for words in some]
    rng.shuffle(subjects)
    wearers = rng.sample(WEARERS, k=min(len(worn), len(WEARERS)))
    subjects += [f"{who} {what}" for who, what in zip(wearers, worn, strict=False)]
    if not subjects or (len(subjects) == 1 and rng.random() < 0.4):
        subjects.insert(rng.randint(0, len(subjects)), rng.choice(SUBJECTS))
    place = places[0] if places else rng.choice(PLACES)
    return " ".join([" and ".join(subjects), place, *styles])


def _article(words: str) -> str:
    """A name ("zibo fox") stays bare, as it is when one types it; a thing gets its article."""
    if " " in words or words[:1].isupper():
        return words
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def _distinct(draw: Callable[[], str], count: int) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for _ in range(20 * count):
        found[draw()] = None
        if len(found) == count:
            break
    return tuple(found)
