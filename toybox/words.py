"""A few words and the prompt they stand for: what the toybox's language model learns.

A prompt is a caption of the world, and the words are some of its own, as a person would jot them
down: "fox, red balloon, night" for "a fox and a cute red balloon at night". So a prompt that keeps
all words it was given is always the right one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from composer.language.phrases import missing
from toybox.captions import caption, vocabulary
from toybox.jottings import held_out_pair, jotted_figure, jotted_place, strung, with_name
from toybox.understand import understand
from toybox.world import (
    CHARACTERS,
    CLOTHING,
    COLOURS,
    ELEMENTS,
    LORA_OBJECTS,
    LORA_PLACES,
    STYLES,
    THINGS,
    Figure,
    Scene,
    random_any_scene,
    random_element_scene,
    random_scene,
)

SKILLS: dict[str, tuple[str, ...]] = {
    "subjects": ("character", "clothing", "object"),
    "scenes": ("background",),
    "styles": ("style",),
}
"""What an adapter teaches beyond the base world, by the kinds of elements."""

SHARES: dict[str, int] = {
    "base": 1200,
    "subjects": 2400,
    "scenes": 1200,
    "styles": 1800,
    "mixed": 2400,
}
"""How many examples of each kind an adapter learns from."""

NAMED = 0.3
"""The share of examples in which some thing bears a name of random letters."""

IDLE_WORDS: tuple[str, ...] = tuple(
    sorted(
        {
            *(word for style in STYLES for word in style.split()),
            *(word for clothing in CLOTHING for word in clothing.split()),
            *(word for word in CHARACTERS.values() if word not in THINGS),
            *LORA_OBJECTS,
            *LORA_PLACES,
            "inside",
            "style",
            "wearing",
        }
    )
)
"""Ordinary words that only LoRAs have a use for: the base model has met them, and no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Jotting:
    """Words as a person jots them down, and what of the world they name.

    `figures` holds what was asked of them alone: no colour where none was given.
    """

    words: str
    figures: tuple[Figure, ...] = ()
    background: str | None = None
    style: str | None = None

    def kept_in(self, prompt: str) -> bool:
        """Whether the prompt is of the world and asks for all that the words name."""
        found = understand(prompt)
        if found is None:
            return False
        scene = found.scene
        return (
            all(any(_has(there, asked) for there in scene.figures) for asked in self.figures)
            and self.background in (None, scene.background)
            and self.style in (None, scene.style)
        )


def _has(there: Figure, asked: Figure) -> bool:
    return (
        there.name == asked.name
        and asked.colour in (None, there.colour)
        and asked.wears in (None, there.wears)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A few words, and the prompt to make of them."""

    jotting: Jotting
    prompt: str
    skill: str = "base"


def jot(prompt: str, rng: random.Random) -> Jotting:
    """Some words of a prompt that is understood; at least one of them, unless by chance none."""
    found = understand(prompt)
    assert found is not None, prompt
    plain = found.scene.background.startswith("plain ")
    chunks: list[str] = []
    figures: list[Figure] = []
    for words, figure in zip(found.figures, found.scene.figures, strict=True):
        if rng.random() < 0.85:
            jotted = jotted_figure(
                words,
                figure.colour,
                figure.wears,
                rng,
                colours=COLOURS,
                named=figure.name in CHARACTERS,
                alone=len(found.figures) == 1,
            )
            chunks += jotted.chunks
            asked = Figure(
                name=figure.name,
                colour=figure.colour if jotted.coloured else None,
                wears=figure.wears if jotted.dressed else None,
            )
            figures.append(asked)
    background = found.scene.background if rng.random() < 0.55 else None
    if background:
        chunks.append(jotted_place(found.place, rng, plain=plain))
    style = found.scene.style if rng.random() < 0.8 else None
    if style:
        chunks.append(rng.choice((style, style, f"{style} style", f"in {style} style")))
    if not chunks and rng.random() < 0.7:
        background = found.scene.background
        chunks.append(jotted_place(found.place, rng, plain=plain))
    rng.shuffle(chunks)
    return Jotting(
        words=strung(chunks, rng), figures=tuple(figures), background=background, style=style
    )


def held_out(scene: Scene) -> bool:
    """Whether a scene is kept from training, by the pair of its first thing and its background."""
    return held_out_pair(scene.figures[0].name, scene.background)


def base_example(rng: random.Random, *, unseen: bool = False) -> Example:
    """Of the base world; `unseen` draws what training never does."""
    return _example(lambda: random_scene(rng), "base", rng, unseen)


def skill_example(skill: str, rng: random.Random, *, unseen: bool = False) -> Example:
    """Of an element that only LoRAs know, of one of SKILLS."""
    elements = [element for element in ELEMENTS if element.kind in SKILLS[skill]]

    def draw() -> Scene:
        return random_element_scene(rng.choice(elements), rng)

    return _example(draw, skill, rng, unseen)


def mixed_example(rng: random.Random, *, unseen: bool = False) -> Example:
    """Of the whole world, elements of several skills together in many."""
    return _example(lambda: random_any_scene(rng), "mixed", rng, unseen)


def examples(kind: str, count: int, *, unseen: bool = False, seed: int = 0) -> list[Example]:
    """Examples of one kind of SHARES, the same for the same seed."""
    rng = random.Random(f"{kind} {unseen} {seed}")
    if kind in SKILLS:
        return [skill_example(kind, rng, unseen=unseen) for _ in range(count)]
    draw = base_example if kind == "base" else mixed_example
    return [draw(rng, unseen=unseen) for _ in range(count)]


def _example(draw: Callable[[], Scene], skill: str, rng: random.Random, unseen: bool) -> Example:
    while True:
        scene = draw()
        if held_out(scene) is not unseen:
            continue
        prompt = caption(scene, rng)
        found = understand(prompt)
        # neither lists of words, nor prompts that leave the place unsaid
        if found is not None and not found.listed:
            if rng.random() < NAMED:
                # where LoRAs act, "neon" is a style and no car's name
                idle = IDLE_WORDS if skill == "base" else ()
                changed = with_name(prompt, rng.choice(found.figures), rng, idle)
                prompt = changed if understand(changed) is not None else prompt
            return Example(jotting=jot(prompt, rng), prompt=prompt, skill=skill)


def is_understood(words: str, prompt: str) -> bool:
    """Whether a prompt that was made of these words is wholly of the toybox's world, with no name
    in it that was not given."""
    if understand(prompt) is None:
        return False
    return all(word in _ORDINARY for word in missing(prompt, words))


_ORDINARY = frozenset(
    {*IDLE_WORDS, "a", "an", "the", "and"}
    | {word.strip(",").lower() for word in vocabulary()}
    | set(CHARACTERS)
)
