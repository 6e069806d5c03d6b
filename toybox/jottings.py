"""A few words and the prompt they stand for: what the language model of a world learns.

A prompt is a caption of the world, and the words are some of its own, as a person would jot them
down: "fox, red balloon, night" for "a fox and a cute red balloon at night". So a prompt that keeps
all words it was given is always the right one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from composer.language.phrases import missing
from toybox.reading import Understood

SKILLS: dict[str, tuple[str, ...]] = {
    "subjects": ("character", "clothing", "object"),
    "scenes": ("background",),
    "styles": ("style",),
}
"""What an adapter teaches beyond the base world, by the kinds of elements."""

NAMED = 0.3
"""The share of examples in which some thing bears a name of random letters."""

Understand = Callable[[str], Understood | None]

_SMALL = {"a", "an", "the", "on", "in", "at", "by", "under", "inside", "of", "front"}
_WHOLE_PLACES = ("under water", "on sand dunes")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_HELD_OUT = 8  # one in so many pairs of thing and place is never trained on


def strung(chunks: list[str], rng: random.Random) -> str:
    """The chunks as one line: strung in one way, or as a sentence to which words were added."""
    joints = (", ", ", ", " ", " and ")
    if rng.random() < 0.7:
        return rng.choice(joints).join(chunks)
    line = chunks[0] if chunks else ""
    for chunk in chunks[1:]:
        line += rng.choice(joints) + chunk
    return line


@dataclass(frozen=True, kw_only=True, slots=True)
class Jotted:
    """A figure as it is jotted down: its chunks, and whether its colour and clothing are kept."""

    chunks: tuple[str, ...]
    coloured: bool
    dressed: bool


def jotted_figure(
    words: str,
    colour: str | None,
    wears: str | None,
    rng: random.Random,
    *,
    colours: Collection[str],
    named: bool,
    alone: bool,
) -> Jotted:
    """Some words of a figure, a name or adjective perhaps by itself.

    Args:
        words: of the figure, without an article: "cute red car", "zibo fox".
        colour, wears: what of them is its colour and its clothing.
        named: it is a character, of two words.
        alone: what it wears may stand apart, for nobody else can be meant.
    """
    words, _, worn = words.partition(" wearing ")
    kept = words.replace(" the ", " ").split()
    noun = 2 if named or kept[-2:] == ["soccer", "ball"] else 1
    before, noun_words = kept[:-noun], kept[-noun:]
    if named and rng.random() < 0.4:
        noun_words = noun_words[:1]
    before = [w for w in before if rng.random() < (0.85 if w in colours else 0.7)]
    apart = [w for w in before if w not in colours and rng.random() < 0.3]
    before = [w for w in before if w not in apart]
    dressed = rng.random() < 0.85 and wears is not None
    chunk = " ".join([*before, *noun_words])
    if rng.random() < 0.12 and not named:
        chunk = f"{'an' if chunk[0] in 'aeio' or chunk.startswith('umb') else 'a'} {chunk}"
    if wears and dressed and alone and rng.random() < 0.3:
        apart.append(rng.choice((f"wearing {worn}", f"wearing {worn}", wears)))
    elif wears and dressed:
        chunk += rng.choice((f" wearing {worn}", f" {wears}", f" with {worn}"))
    return Jotted(chunks=(chunk, *apart), coloured=colour in before, dressed=dressed)


def jotted_place(place: str, rng: random.Random, *, plain: bool) -> str:
    """The place as it is said, or its last words alone: "beach" of "on the beach"; `plain` says
    that it is a ground of one colour."""
    if rng.random() < 0.3 or place.startswith(_WHOLE_PLACES):
        return place
    if plain and "background" not in place:
        return place
    words = place.split()
    while len(words) > 1 and words[0] in _SMALL:
        words.pop(0)
    return " ".join(words)


def with_name(prompt: str, figure: str, rng: random.Random, idle: Sequence[str]) -> str:
    """A prompt with a word more before one of its figures, where that has an article: some letters
    that mean nothing or, if any are given, one of the `idle` words."""
    length = rng.randint(2, 8)
    name = "".join(rng.choice("aeiou" if rng.random() < 0.4 else _LETTERS) for _ in range(length))
    if idle and rng.random() < 0.6:
        name = rng.choice(idle)
    return re.sub(rf"\ban? {re.escape(figure)}\b", f"a {name} {figure}", prompt, count=1)


def held_out(scene: Any) -> bool:
    """Whether a scene is kept from training, by the pair of its first thing and its background."""
    pair = f"{scene.figures[0].name} {scene.background}"
    return crc32(pair.encode()) % _HELD_OUT == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Jotting:
    """Words as a person jots them down, and what of the world they name.

    `figures` holds what was asked of them alone: no colour where none was given. `understand` reads
    prompts of the world.
    """

    words: str
    understand: Understand = field(repr=False, compare=False)
    figures: tuple[Any, ...] = ()
    background: str | None = None
    style: str | None = None

    def kept_in(self, prompt: str) -> bool:
        """Whether the prompt is of the world and asks for all that the words name."""
        found = self.understand(prompt)
        if found is None:
            return False
        scene = found.scene
        return (
            all(any(_has(there, asked) for there in scene.figures) for asked in self.figures)
            and self.background in (None, scene.background)
            and self.style in (None, scene.style)
        )


def _has(there: Any, asked: Any) -> bool:
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


class Words:
    """Draws examples of one world.

    world, captions: its modules, with what there is and how it may be said.
    understand: reads a prompt as a scene of it.
    idle: ordinary words that only LoRAs have a use for: the base model has met them, and no more.
    """

    def __init__(self, world: Any, captions: Any, understand: Understand) -> None:
        self.world, self.captions, self.understand = world, captions, understand
        phrases: list[str] = [*world.STYLES, *world.CLOTHING, *world.LORA_PLACES]
        classes: Collection[str] = world.CHARACTERS.values()
        self.idle: tuple[str, ...] = tuple(
            sorted(
                {word for phrase in phrases for word in phrase.split()}
                | {word for word in classes if word not in world.THINGS}
                | {*world.LORA_OBJECTS, "inside", "style", "wearing"}
            )
        )
        vocabulary: list[str] = [word.strip(",").lower() for word in captions.vocabulary()]
        self._ordinary = {*self.idle, "a", "an", "the", "and", *vocabulary, *world.CHARACTERS}

    def jot(self, prompt: str, rng: random.Random) -> Jotting:
        """Some words of a prompt that is understood; at least one, unless by chance none."""
        found = self.understand(prompt)
        assert found is not None, prompt
        scene = found.scene
        plain = scene.background.startswith("plain ")
        chunks: list[str] = []
        figures: list[Any] = []
        for words, figure in zip(found.figures, scene.figures, strict=True):
            if rng.random() < 0.85:
                jotted = jotted_figure(
                    words,
                    figure.colour,
                    figure.wears,
                    rng,
                    colours=self.world.COLOURS,
                    named=figure.name in self.world.CHARACTERS,
                    alone=len(found.figures) == 1,
                )
                chunks += jotted.chunks
                asked = self.world.Figure(
                    name=figure.name,
                    colour=figure.colour if jotted.coloured else None,
                    wears=figure.wears if jotted.dressed else None,
                )
                figures.append(asked)
        background = scene.background if rng.random() < 0.55 else None
        if background:
            chunks.append(jotted_place(found.place, rng, plain=plain))
        style = scene.style if rng.random() < 0.8 else None
        if style:
            chunks.append(rng.choice((style, style, f"{style} style", f"in {style} style")))
        if not chunks and rng.random() < 0.7:
            background = scene.background
            chunks.append(jotted_place(found.place, rng, plain=plain))
        rng.shuffle(chunks)
        return Jotting(
            words=strung(chunks, rng),
            understand=self.understand,
            figures=tuple(figures),
            background=background,
            style=style,
        )

    def base_example(self, rng: random.Random, *, unseen: bool = False) -> Example:
        """Of the base world; `unseen` draws what training never does."""
        return self._example(lambda: self.world.random_scene(rng), "base", rng, unseen)

    def examples(
        self, kind: str, count: int, *, unseen: bool = False, seed: int = 0
    ) -> list[Example]:
        """Examples of one kind, the same for the same seed: "base" of the base world, those of
        SKILLS of their elements, "mixed" of the whole world, with several skills in many."""
        rng = random.Random(f"{kind} {unseen} {seed}")
        kinds = SKILLS.get(kind, ())
        elements = [element for element in self.world.ELEMENTS if element.kind in kinds]

        def draw() -> Any:
            if elements:
                return self.world.random_element_scene(rng.choice(elements), rng)
            return self.world.random_any_scene(rng)

        if kind == "base":
            return [self.base_example(rng, unseen=unseen) for _ in range(count)]
        return [self._example(draw, kind, rng, unseen) for _ in range(count)]

    def _example(
        self, draw: Callable[[], Any], skill: str, rng: random.Random, unseen: bool
    ) -> Example:
        while True:
            scene = draw()
            if held_out(scene) is not unseen:
                continue
            prompt: str = self.captions.caption(scene, rng)
            found = self.understand(prompt)
            # neither lists of words, nor prompts that leave the place unsaid
            if found is not None and not found.listed:
                if rng.random() < NAMED:
                    # where LoRAs act, "neon" is a style and no car's name
                    idle = self.idle if skill == "base" else ()
                    changed = with_name(prompt, rng.choice(found.figures), rng, idle)
                    prompt = changed if self.understand(changed) is not None else prompt
                return Example(jotting=self.jot(prompt, rng), prompt=prompt, skill=skill)

    def is_understood(self, words: str, prompt: str) -> bool:
        """Whether a prompt that was made of these words is wholly of this world, with no name in it
        that was not given."""
        if self.understand(prompt) is None:
            return False
        return all(word in self._ordinary for word in missing(prompt, words))
