"""Read a prompt as the scene it asks for, by the words of a world: the inverse of its `caption`.

What it reads is what the models were taught to read, so it judges whether a prompt that a language
model wrote is one of this world.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_ORDERS: tuple[tuple[re.Pattern[str], tuple[int, ...]], ...] = (
    (re.compile(r"^(.+) on the left, (.+) in the middle and (.+) on the right$"), (1, 2, 3)),
    (re.compile(r"^(.+) between (.+) and (.+)$"), (2, 1, 3)),
    (re.compile(r"^(.+) next to (.+) and (.+)$"), (1, 2, 3)),
    (re.compile(r"^(.+), (.+) and (.+)$"), (1, 2, 3)),
    (re.compile(r"^(.+) on the left and (.+) on the right$"), (1, 2)),
    (re.compile(r"^(.+) to the left of (.+)$"), (1, 2)),
    (re.compile(r"^(.+) to the right of (.+)$"), (2, 1)),
    (re.compile(r"^(.+) next to (.+)$"), (1, 2)),
    (re.compile(r"^(.+) and (.+)$"), (1, 2)),
)
"""How figures are joined, and which of the parts stand from left to right."""

_MOST_OTHERS = 2  # words before a thing that are neither its colour nor an article


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadFigure:
    """A figure's name in the world, and its words without an article."""

    name: str
    colour: str | None
    wears: str | None
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """What a prompt asks for: figures from left to right, a background, perhaps a style.

    `place` is "on the beach" and the like. `listed` says that the prompt is no sentence but a
    list, "cat, red car, beach".
    """

    figures: tuple[ReadFigure, ...]
    background: str
    style: str | None
    place: str
    listed: bool


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The words of a world.

    nouns: figures by the words that name them; those in `named` stand without an article.
    places, tags: backgrounds by the words of a sentence, and of a list.
    tintable, wearers: names of figures that take a colour, and a piece of clothing.
    starts, quality: words at both ends of a prompt that mean nothing.
    most: how many figures there may be.
    """

    nouns: Mapping[str, str]
    named: Collection[str]
    places: Mapping[str, str]
    tags: Mapping[str, str]
    colours: Collection[str]
    tintable: Collection[str]
    clothing: Collection[str]
    wearers: Collection[str]
    styles: Collection[str]
    starts: Collection[str]
    quality: Collection[str]
    most: int

    @cached_property
    def _start(self) -> re.Pattern[str]:
        return re.compile(f"^(?:{_any(filter(None, self.starts))})")

    @cached_property
    def _qualities(self) -> re.Pattern[str]:
        return re.compile(rf"(?:, (?:{_any(self.quality)}))+$")

    @cached_property
    def _style(self) -> re.Pattern[str]:
        return re.compile(rf" in ({_any(self.styles)}) style$")

    @cached_property
    def _last(self) -> re.Pattern[str]:
        return re.compile(rf",? ({_any(self.places)})$")

    @cached_property
    def _first(self) -> re.Pattern[str]:
        return re.compile(rf"^({_any(self.places)}), ")

    @cached_property
    def _worn(self) -> re.Pattern[str]:
        return re.compile(rf" wearing (?:a )?({_any(self.clothing)})$")

    @cached_property
    def _noun(self) -> re.Pattern[str]:
        return re.compile(rf"(?:^| )({_any(self.nouns)})$")

    def read(self, prompt: str) -> Read | None:
        """What a prompt asks for; None if it is not wholly of this world, or leaves its place
        unsaid.

        A word that is not known is taken for a name or an adjective only directly before a thing.
        """
        words = self._qualities.sub("", self._start.sub("", " ".join(prompt.lower().split())))
        style = None
        if found := self._style.search(words):
            style, words = found[1], words[: found.start()]
        if found := self._last.search(words):
            place, rest = found[1], words[: found.start()]
        elif found := self._first.search(words):
            place, rest = found[1], words[found.end() :]
        else:
            return self._list(words, style)
        for parts in _splits(rest):
            if figures := self._figures(parts, article=True):
                background = self.places[place]
                return Read(
                    figures=figures, background=background, style=style, place=place, listed=False
                )
        # "cat, under water" ends like a sentence and is a list
        return self._list(words, style)

    def _list(self, words: str, style: str | None) -> Read | None:
        """A list of words: "cat, red car, beach, neon style"."""
        *parts, place = words.split(", ")
        if place.endswith(" style") and style is None:
            style = place.removesuffix(" style")
            *parts, place = parts or ("",)
        figures = self._figures(parts, article=False)
        if figures is None or place not in self.tags or style not in (None, *self.styles):
            return None
        background = self.tags[place]
        return Read(figures=figures, background=background, style=style, place=place, listed=True)

    def _figures(self, parts: Collection[str], *, article: bool) -> tuple[ReadFigure, ...] | None:
        """All parts as figures; None where one is none, or where there are too many or none."""
        found = [self._figure(part, article=article) for part in parts]
        figures = tuple(figure for figure in found if figure is not None)
        return figures if len(figures) == len(found) and 0 < len(found) <= self.most else None

    def _figure(self, words: str, *, article: bool) -> ReadFigure | None:
        """One figure: "a cute red car", "florp the fox", "zibo fox"."""
        wears = None
        whole = re.sub(r"^an? ", "", words)
        has_article = whole != words
        words = whole
        if found := self._worn.search(words):
            wears, words = found[1], words[: found.start()]
        found = self._noun.search(words)
        if found is None:
            return None
        name, before = self.nouns[found[1]], words[: found.start()].split()
        called = len(before) > 1 and before[1] == "the"
        if called:
            del before[1]
        if article and not has_article and not called and name not in self.named:
            return None
        colours = [w for w in before if w in self.colours] if name in self.tintable else []
        others = [word for word in before if word not in colours]
        if len(colours) > 1 or len(others) > _MOST_OTHERS or not all(w.isalpha() for w in others):
            return None
        if wears is not None and name not in self.wearers:
            return None
        colour = colours[0] if colours else None
        return ReadFigure(name=name, colour=colour, wears=wears, words=whole)


@dataclass(frozen=True, kw_only=True, slots=True)
class Understood:
    """The scene that a prompt asks for, and the words that say each part of it.

    `scene` is of the world's own class, and `figures` are left to right as in it, without
    articles; `place` is "on the beach" and the like. `listed` says that it is no sentence but a
    list, "cat, red car, beach".
    """

    scene: Any
    figures: tuple[str, ...]
    place: str
    listed: bool = False


class Reader:
    """Reads prompts of one world.

    world, captions: its modules, with what there is and how it may be said.
    """

    def __init__(self, world: Any, captions: Any) -> None:
        self._world = world
        grounds: Collection[str] = world.GROUNDS
        places: Mapping[str, tuple[str, ...]] = captions.PLACE_WORDS
        characters: Mapping[str, str] = world.CHARACTERS
        self._tables = Tables(
            nouns={
                **{name: name for name in (*world.THINGS, *world.LORA_OBJECTS)},
                "soccer ball": "ball",
                **{f"{name} {kind}": name for name, kind in characters.items()},
            },
            named=characters,
            places={
                **{words: place for place, choices in places.items() for words in choices},
                **{f"on a {colour} background": f"plain {colour}" for colour in grounds},
                **{f"in front of a {colour} background": f"plain {colour}" for colour in grounds},
                **{f"on {colour}": f"plain {colour}" for colour in grounds},
            },
            tags={
                **{captions.SHORT.get(place, place): place for place in places},
                **{f"{colour} background": f"plain {colour}" for colour in grounds},
            },
            colours=world.COLOURS,
            tintable=world.TINTABLE,
            clothing=world.CLOTHING,
            wearers=world.WEARERS,
            styles=world.STYLES,
            starts=captions.STARTS,
            quality=captions.QUALITY,
            most=world.MOST_FIGURES,
        )

    def understand(self, prompt: str) -> Understood | None:
        """What a prompt asks for; None if it is not wholly of this world, or leaves its place
        unsaid.

        A word that is not known is taken for a name or an adjective only directly before a thing.
        """
        read = self._tables.read(prompt)
        if read is None:
            return None
        figures = tuple(
            self._world.Figure(name=f.name, colour=f.colour, wears=f.wears) for f in read.figures
        )
        scene = self._world.Scene(figures=figures, background=read.background, style=read.style)
        words = tuple(figure.words for figure in read.figures)
        return Understood(scene=scene, figures=words, place=read.place, listed=read.listed)


def _any(texts: Iterable[str]) -> str:
    """A pattern of the longest of these texts that fits."""
    return "|".join(sorted((re.escape(text) for text in texts), key=len, reverse=True))


def _splits(words: str) -> Iterator[tuple[str, ...]]:
    """The ways in which words may be figures joined, from left to right: one figure only where
    nothing joins any."""
    joined = [(pattern.match(words), order) for pattern, order in _ORDERS]
    if not any(found for found, _ in joined):
        yield (words,)
    for found, order in joined:
        if found:
            yield tuple(found[place] for place in order)
