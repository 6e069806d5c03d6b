"""A few words and the prompt they stand for: what the toybox's language model learns.

`said` is a caption of the world, and the words are some of its own, as a person would jot them
down: "fox, red balloon, night" for "a fox and a cute red balloon at night". So a prompt that keeps
all words it was given is always the right one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

from composer.language.phrases import missing
from toybox.captions import caption, vocabulary
from toybox.understand import Understood, understand
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

_SMALL = {"a", "an", "the", "on", "in", "at", "by", "under", "inside", "of", "front"}
_WHOLE_PLACES = ("under water", "on sand dunes")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_HELD_OUT = 8  # one in so many pairs of thing and place is never trained on


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


def jot(said: str, rng: random.Random) -> Jotting:
    """Some words of a caption that is understood; at least one of them, unless by chance none."""
    found = understand(said)
    assert found is not None, said
    chunks: list[str] = []
    figures: list[Figure] = []
    alone = len(found.figures) == 1
    for words, figure in zip(found.figures, found.scene.figures, strict=True):
        if rng.random() < 0.85:
            said_of_it, asked = _figure_chunks(words, figure, rng, alone=alone)
            chunks += said_of_it
            figures.append(asked)
    background = found.scene.background if rng.random() < 0.55 else None
    if background:
        chunks.append(_place_chunk(found, rng))
    style = found.scene.style if rng.random() < 0.8 else None
    if style:
        chunks.append(rng.choice((style, style, f"{style} style", f"in {style} style")))
    if not chunks and rng.random() < 0.7:
        background = found.scene.background
        chunks.append(_place_chunk(found, rng))
    rng.shuffle(chunks)
    return Jotting(
        words=_strung(chunks, rng),
        figures=tuple(figures),
        background=background,
        style=style,
    )


def _strung(chunks: list[str], rng: random.Random) -> str:
    """The chunks as one line: strung in one way, or as a sentence to which words were added."""
    joints = (", ", ", ", " ", " and ")
    if rng.random() < 0.7:
        return rng.choice(joints).join(chunks)
    line = chunks[0] if chunks else ""
    for chunk in chunks[1:]:
        line += rng.choice(joints) + chunk
    return line


def _figure_chunks(
    words: str, figure: Figure, rng: random.Random, *, alone: bool
) -> tuple[list[str], Figure]:
    """A figure as it is jotted down, a name or adjective perhaps by itself, and what is thereby
    asked for. Where it is `alone`, what it wears may stand apart: nobody else can be meant."""
    words, _, worn = words.partition(" wearing ")
    kept = words.replace(" the ", " ").split()
    noun = 2 if figure.name in CHARACTERS or kept[-2:] == ["soccer", "ball"] else 1
    before, noun_words = kept[:-noun], kept[-noun:]
    if figure.name in CHARACTERS and rng.random() < 0.4:
        noun_words = [figure.name]
    before = [w for w in before if rng.random() < (0.85 if w in COLOURS else 0.7)]
    apart = [w for w in before if w not in COLOURS and rng.random() < 0.3]
    before = [w for w in before if w not in apart]
    wears = figure.wears if rng.random() < 0.85 else None
    chunk = " ".join([*before, *noun_words])
    if rng.random() < 0.12 and figure.name not in CHARACTERS:
        chunk = f"{'an' if chunk[0] in 'aeio' or chunk.startswith('umb') else 'a'} {chunk}"
    if wears and alone and rng.random() < 0.3:
        apart.append(rng.choice((f"wearing {worn}", f"wearing {worn}", wears)))
    elif wears:
        chunk += rng.choice((f" wearing {worn}", f" {wears}", f" with {worn}"))
    colour = figure.colour if figure.colour in before else None
    return [chunk, *apart], Figure(name=figure.name, colour=colour, wears=wears)


def _place_chunk(found: Understood, rng: random.Random) -> str:
    """The place as it is said, or its last words alone: "beach" of "on the beach"."""
    if rng.random() < 0.3 or found.place.startswith(_WHOLE_PLACES):
        return found.place
    if found.scene.background.startswith("plain ") and "background" not in found.place:
        return found.place
    words = found.place.split()
    while len(words) > 1 and words[0] in _SMALL:
        words.pop(0)
    return " ".join(words)


def with_a_name(said: str, rng: random.Random, *, idle: bool) -> str:
    """A caption with a word more before one of its things, where that is a thing with an article:
    so it is learnt to keep any word. It is some letters that mean nothing or, where `idle`, an
    ordinary word that the base world has no use for."""
    found = understand(said)
    assert found is not None, said
    words = rng.choice(found.figures)
    length = rng.randint(2, 8)
    name = "".join(rng.choice("aeiou" if rng.random() < 0.4 else _LETTERS) for _ in range(length))
    if idle and rng.random() < 0.6:
        name = rng.choice(IDLE_WORDS)
    changed = re.sub(rf"\ban? {re.escape(words)}\b", f"a {name} {words}", said, count=1)
    return changed if understand(changed) is not None else said


def held_out(scene: Scene) -> bool:
    """Whether a scene is kept from training, by the pair of its first thing and its background."""
    pair = f"{scene.figures[0].name} {scene.background}"
    return crc32(pair.encode()) % _HELD_OUT == 0


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


def _example(draw: Callable[[], Scene], skill: str, rng: random.Random, unseen: bool) -> Example:
    while True:
        scene = draw()
        if held_out(scene) is not unseen:
            continue
        said = caption(scene, rng)
        found = understand(said)
        # neither lists of words, nor prompts that leave the place unsaid
        if found is not None and not found.listed:
            if rng.random() < NAMED:
                # where LoRAs act, "neon" is a style and no car's name
                said = with_a_name(said, rng, idle=skill == "base")
            return Example(jotting=jot(said, rng), prompt=said, skill=skill)


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
