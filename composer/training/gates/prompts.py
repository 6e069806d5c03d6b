"""Prompts to train gates on: drafted from the LoRAs' trigger words, and checked."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from composer.diffusion.conditioning import count_chunks
from composer.errors import ComposerError
from composer.training.gates.settings import GateTraining

if TYPE_CHECKING:
    from composer.diffusion.model import Model

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
    """Prompts that name all experts, and each one alone."""

    composed: tuple[str, ...]
    alone: dict[str, tuple[str, ...]]


def draft_prompts(experts: Sequence[Called], *, count: int = 24, seed: int = 0) -> Prompts:
    """Prompts of each kind, `count` or as many as differ, in ordinary words around the triggers.

    Every prompt holds the triggers of all the experts that it is to name.

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

    return Prompts(composed=drawn(experts), alone={e.name: drawn([e]) for e in experts})


def check_prompts(model: Model, names: Sequence[str], config: GateTraining) -> None:
    """Refuse what cannot be learnt from.

    names: of the experts.

    Raises:
        ComposerError: no prompt that names all, an expert without its own where CLIP compares with
            it, a prompt too long.
    """
    if unknown := sorted(set(config.alone) - set(names)):
        raise ComposerError(
            f"There are prompts for {unknown[0]!r}, which is none of the experts: "
            f"{', '.join(names)}."
        )
    if not config.prompts:
        raise ComposerError("There is no prompt that names all experts: give at least one.")
    read = list(config.prompts)
    if config.paper:
        for name in names:
            if not config.alone.get(name):
                raise ComposerError(f"There is no prompt for {name!r} alone: give at least one.")
        read += [prompt for prompts in config.alone.values() for prompt in prompts]
    for prompt in read:
        if count_chunks(model, prompt) > 1:
            raise ComposerError(
                f"The prompt {prompt!r} is longer than the {model.token_limit - 2} tokens that "
                "the text encoder reads at once: shorten it."
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
    wearers += [rng.choice(WEARERS) for _ in worn[len(wearers) :]]
    subjects += [f"{who} {what}" for who, what in zip(wearers, worn, strict=True)]
    if not subjects or (len(subjects) == 1 and rng.random() < 0.4):
        subjects.insert(rng.randint(0, len(subjects)), rng.choice(SUBJECTS))
    place = " and ".join(places) if places else rng.choice(PLACES)
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
