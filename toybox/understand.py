"""Read a prompt as the scene it asks for: the inverse of `captions.caption`.

What it reads is what the models were taught to read, so it judges whether a prompt that a language
model wrote is one of this world.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from toybox.captions import PLACE_WORDS, QUALITY, SHORT, STARTS
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

_NOUNS = {
    **{name: name for name in (*THINGS, *LORA_OBJECTS)},
    "soccer ball": "ball",
    **{f"{name} {kind}": name for name, kind in CHARACTERS.items()},
}
_PLACES: dict[str, str] = {
    **{words: place for place, choices in PLACE_WORDS.items() for words in choices},
    **{f"on a {colour} background": f"plain {colour}" for colour in GROUNDS},
    **{f"in front of a {colour} background": f"plain {colour}" for colour in GROUNDS},
    **{f"on {colour}": f"plain {colour}" for colour in GROUNDS},
}
_TAGS: dict[str, str] = {
    **{SHORT.get(place, place): place for place in PLACE_WORDS},
    **{f"{colour} background": f"plain {colour}" for colour in GROUNDS},
}


def _any(texts: Iterable[str]) -> str:
    """A pattern of the longest of these texts that fits."""
    return "|".join(sorted((re.escape(text) for text in texts), key=len, reverse=True))


_START = re.compile(_any(start for start in STARTS if start))
_QUALITIES = re.compile(rf"(?:, (?:{_any(QUALITY)}))+$")
_STYLE = re.compile(rf" in ({_any(STYLES)}) style$")
_LAST = re.compile(rf",? ({_any(_PLACES)})$")
_FIRST = re.compile(rf"^({_any(_PLACES)}), ")
_TWO = (
    (re.compile(r"^(.+) on the left and (.+) on the right$"), False),
    (re.compile(r"^(.+) to the left of (.+)$"), False),
    (re.compile(r"^(.+) to the right of (.+)$"), True),
    (re.compile(r"^(.+) next to (.+)$"), False),
    (re.compile(r"^(.+) and (.+)$"), False),
)
_WORN = re.compile(rf" wearing (?:a )?({_any(CLOTHING)})$")
_NOUN = re.compile(rf"(?:^| )({_any(_NOUNS)})$")
_MOST_OTHERS = 2  # words before a thing that are neither its colour nor an article


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
    words = " ".join(prompt.lower().split())
    words = _QUALITIES.sub("", _START.sub("", words, count=1) if _START.match(words) else words)
    style = None
    if found := _STYLE.search(words):
        style, words = found[1], words[: found.start()]
    if found := _LAST.search(words):
        place, rest = found[1], words[: found.start()]
    elif found := _FIRST.search(words):
        place, rest = found[1], words[found.end() :]
    else:
        return _understand_tags(words, style)
    parts = _parts(rest)
    figures = [_figure(part, article=True) for part in parts]
    # "cat, under water" ends like a sentence and is a list
    return _understood(figures, _PLACES[place], style, place) or _understand_tags(words, style)


def _parts(words: str) -> tuple[str, ...]:
    for pattern, swapped in _TWO:
        if found := pattern.match(words):
            return (found[2], found[1]) if swapped else (found[1], found[2])
    return (words,)


def _understand_tags(words: str, style: str | None) -> Understood | None:
    """A list of words: "cat, red car, beach, neon style"."""
    *parts, place = words.split(", ")
    if place.endswith(" style") and style is None and place.removesuffix(" style") in STYLES:
        style = place.removesuffix(" style")
        *parts, place = parts or ("",)
    if place not in _TAGS:
        return None
    figures = [_figure(part, article=False) for part in parts]
    return _understood(figures, _TAGS[place], style, place, listed=True)


def _understood(
    figures: list[tuple[Figure, str] | None],
    background: str,
    style: str | None,
    place: str,
    *,
    listed: bool = False,
) -> Understood | None:
    known = [figure for figure in figures if figure is not None]
    if len(known) != len(figures) or len(known) not in (1, 2):
        return None
    scene = Scene(figures=tuple(f for f, _ in known), background=background, style=style)
    words = tuple(said for _, said in known)
    return Understood(scene=scene, figures=words, place=place, listed=listed)


def _figure(words: str, *, article: bool) -> tuple[Figure, str] | None:
    """A figure and its words without article: "a cute red car", "florp the fox", "zibo fox"."""
    wears = None
    whole = re.sub(r"^an? ", "", words)
    has_article = whole != words
    words = whole
    if found := _WORN.search(words):
        wears, words = found[1], words[: found.start()]
    found = _NOUN.search(words)
    if found is None:
        return None
    name, before = _NOUNS[found[1]], words[: found.start()].split()
    named = len(before) > 1 and before[1] == "the"
    if named:
        del before[1]
    if article and not has_article and not named and name not in CHARACTERS:
        return None
    colours = [word for word in before if word in COLOURS] if name in TINTABLE else []
    others = [word for word in before if word not in colours]
    if len(colours) > 1 or len(others) > _MOST_OTHERS or not all(w.isalpha() for w in others):
        return None
    if wears is not None and name not in WEARERS:
        return None
    colour = colours[0] if colours else None
    return Figure(name=name, colour=colour, wears=wears), whole
