"""Words of a prompt as a person jots them down: "fox, red balloon" of "a fox and a red balloon"."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from zlib import crc32

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


def held_out_pair(thing: str, background: str) -> bool:
    """Whether scenes whose first figure and background these are are kept from training."""
    return crc32(f"{thing} {background}".encode()) % _HELD_OUT == 0
