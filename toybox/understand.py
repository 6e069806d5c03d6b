"""Read a prompt as the scene it asks for: the inverse of `captions.caption`.

What it reads is what the models were taught to read, so it judges whether a prompt that a language
model wrote is one of this world.
"""

from __future__ import annotations

from dataclasses import dataclass

from toybox.captions import PLACE_WORDS, QUALITY, SHORT, STARTS
from toybox.reading import Tables
from toybox.world import (
    CHARACTERS,
    CLOTHING,
    COLOURS,
    GROUNDS,
    LORA_OBJECTS,
    STYLES,
    THINGS,
    TINTABLE,
    WEARERS,
    Figure,
    Scene,
)

_TABLES = Tables(
    nouns={
        **{name: name for name in (*THINGS, *LORA_OBJECTS)},
        "soccer ball": "ball",
        **{f"{name} {kind}": name for name, kind in CHARACTERS.items()},
    },
    named=CHARACTERS,
    places={
        **{words: place for place, choices in PLACE_WORDS.items() for words in choices},
        **{f"on a {colour} background": f"plain {colour}" for colour in GROUNDS},
        **{f"in front of a {colour} background": f"plain {colour}" for colour in GROUNDS},
        **{f"on {colour}": f"plain {colour}" for colour in GROUNDS},
    },
    tags={
        **{SHORT.get(place, place): place for place in PLACE_WORDS},
        **{f"{colour} background": f"plain {colour}" for colour in GROUNDS},
    },
    colours=COLOURS,
    tintable=TINTABLE,
    clothing=CLOTHING,
    wearers=WEARERS,
    styles=STYLES,
    starts=STARTS,
    quality=QUALITY,
    most=2,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Understood:
    """The scene that a prompt asks for, and the words that say each part of it.

    `figures` are left to right as in the scene, without articles; `place` is "on the beach" and
    the like. `listed` says that it is no sentence but a list, "cat, red car, beach".
    """

    scene: Scene
    figures: tuple[str, ...]
    place: str
    listed: bool = False


def understand(prompt: str) -> Understood | None:
    """What a prompt asks for; None if it is not wholly of this world, or leaves its place unsaid.

    A word that is not known is taken for a name or an adjective only directly before a thing.
    """
    read = _TABLES.read(prompt)
    if read is None:
        return None
    figures = tuple(Figure(name=f.name, colour=f.colour, wears=f.wears) for f in read.figures)
    scene = Scene(figures=figures, background=read.background, style=read.style)
    words = tuple(figure.words for figure in read.figures)
    return Understood(scene=scene, figures=words, place=read.place, listed=read.listed)
