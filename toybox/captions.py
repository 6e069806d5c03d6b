"""Word a scene: a grammar varied enough that prompts people type work.

`caption` draws one of many wordings; `plain_caption` is the one canonical wording, which the
benchmarks use. Made-up names ("a florp fox") and filler words ("cute", "best quality") occur, so
that a name a LoRA brings is nothing unheard of, and words that mean nothing change nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from toybox.world import (
    CHARACTERS,
    COLOURS,
    GROUNDS,
    LORA_OBJECTS,
    LORA_PLACES,
    STYLES,
    THINGS,
    Figure,
    Scene,
)

PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "at the beach", "on a beach", "by the sea"),
    "night": ("at night", "in the night", "under the night sky", "under the stars"),
    "snow": ("in the snow", "on snow", "in winter", "in a snowy landscape"),
    "city": ("in the city", "in a city", "on a city street", "in the street"),
    "underwater": ("under water", "underwater", "in the ocean", "under the sea"),
    "meadow": ("in a meadow", "on the grass", "in the meadow", "in a green field"),
    "desert": ("in the desert", "in a desert", "on sand dunes"),
    "sunset": ("at sunset", "in the sunset", "in front of a sunset"),
    "forest": ("in the forest", "in a forest", "in the woods", "among trees"),
    "room": ("in a room", "in the living room", "indoors", "at home"),
    "moon": ("on the moon",),
    "volcano": ("inside a volcano",),
    "candy land": ("in candy land",),
    "cherry blossoms": ("under cherry blossoms",),
}
"""How each place may be said, its canonical wording first."""

SHORT = {"night": "night sky", "underwater": "under water", "room": "living room"}
"""How a place is called in a list of words, where its name is not enough."""

WORN: dict[str, str] = {
    "top hat": "a top hat",
    "sunglasses": "sunglasses",
    "crown": "a crown",
    "bow tie": "a bow tie",
}
STARTS = (
    *[""] * 12,
    "a picture of ",
    "a photo of ",
    "an image of ",
    "a drawing of ",
    "picture of ",
    "photo of ",
)
QUALITY = ("best quality", "highly detailed", "masterpiece", "beautiful", "4k")
ADJECTIVES = ("cute", "small", "little", "big", "nice", "lovely", "happy", "pretty")
_SYLLABLES = tuple(c + v for c in "bdfgjklmnprstvz" for v in "aeiou")


def made_up_name(rng: random.Random) -> str:
    """A name of two or three syllables that means nothing; never a character's."""
    while True:
        name = "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3))))
        name += rng.choice(("", "", "x", "p", "n", "r"))
        if name not in CHARACTERS:
            return name


def _article(words: str) -> str:
    # "a ufo" and "a unicorn" are said with a consonant
    return f"{'an' if words[0] in 'aeio' or words.startswith('umb') else 'a'} {words}"


def _figure_words(figure: Figure, rng: random.Random | None) -> str:
    """A figure without its article; `rng` None gives the canonical words."""
    if figure.name in CHARACTERS:
        words = f"{figure.name} {CHARACTERS[figure.name]}"
    else:
        words = figure.name
        if figure.name == "ball" and rng is not None and rng.random() < 0.4:
            words = "soccer ball"
        if figure.colour:
            words = f"{figure.colour} {words}"
        if rng is not None:
            draw = rng.random()
            if draw < 0.08:
                words = f"{made_up_name(rng)} {words}"
            elif draw < 0.18:
                words = f"{rng.choice(ADJECTIVES)} {words}"
    return f"{words} wearing {WORN[figure.wears]}" if figure.wears else words


def _named(words: str, figure: Figure, rng: random.Random | None) -> str:
    if figure.name in CHARACTERS:
        return words
    if rng is not None and rng.random() < 0.05 and not figure.wears:
        return f"{made_up_name(rng)} the {words}"
    return _article(words)


def _background_words(background: str, rng: random.Random | None) -> str:
    if background.startswith("plain "):
        colour = background.removeprefix("plain ")
        if rng is None:
            return f"on a {colour} background"
        return rng.choice(
            (f"on a {colour} background", f"on {colour}", f"in front of a {colour} background")
        )
    choices = PLACE_WORDS[background]
    return choices[0] if rng is None else rng.choice(choices)


def _listed(figures: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(figures[:-1]), figures[-1])))


def plain_caption(scene: Scene) -> str:
    """The one canonical wording: "a cat, a frog and a red car on the beach in neon style"."""
    figures = [_named(_figure_words(f, None), f, None) for f in scene.figures]
    words = f"{_listed(figures)} {_background_words(scene.background, None)}"
    return f"{words} in {scene.style} style" if scene.style else words


def caption(scene: Scene, rng: random.Random) -> str:
    """One of many wordings of `scene`; one in fourteen leaves the background unsaid."""
    if rng.random() < 0.08:
        return _tag_caption(scene, rng)
    figures = [_named(_figure_words(f, rng), f, rng) for f in scene.figures]
    words = rng.choice(STARTS) + _joined(figures, rng)
    draw = rng.random()
    if scene.style or draw > 0.07:
        place = _background_words(scene.background, rng)
        if draw > 0.9 and len(scene.figures) == 1:
            words = f"{place}, {words}"
        else:
            words = f"{words}{', ' if draw > 0.85 else ' '}{place}"
    if scene.style:
        words = f"{words} in {scene.style} style"
    return f"{words}, {rng.choice(QUALITY)}" if rng.random() < 0.05 else words


def _joined(figures: list[str], rng: random.Random) -> str:
    if len(figures) == 1:
        return figures[0]
    draw = rng.random()
    if len(figures) == 3:
        left, middle, right = figures
        if draw < 0.6:
            return _listed(figures)
        if draw < 0.8:
            return f"{left} on the left, {middle} in the middle and {right} on the right"
        if draw < 0.9:
            return f"{middle} between {left} and {right}"
        return f"{left} next to {middle} and {right}"
    left, right = figures
    if draw < 0.55:
        return f"{left} and {right}"
    if draw < 0.7:
        return f"{left} next to {right}"
    if draw < 0.85:
        return f"{left} on the left and {right} on the right"
    if draw < 0.93:
        return f"{left} to the left of {right}"
    return f"{right} to the right of {left}"


def _tag_caption(scene: Scene, rng: random.Random) -> str:
    """Comma-separated words, as people type them: "cat, red car, beach"."""
    parts = [_figure_words(figure, rng) for figure in scene.figures]
    if scene.background.startswith("plain "):
        parts.append(f"{scene.background.removeprefix('plain ')} background")
    else:
        parts.append(SHORT.get(scene.background, scene.background))
    if scene.style:
        parts.append(f"{scene.style} style")
    if rng.random() < 0.3:
        parts.append(rng.choice(QUALITY))
    return ", ".join(parts)


def vocabulary() -> Iterator[str]:
    """Every word the grammar can use: what the tokenizer keeps whole.

    Characters' names are left out: a name is spelt in letters, as one that no one knows.
    """
    yield from THINGS
    yield from COLOURS
    yield from GROUNDS
    for words in (*PLACE_WORDS.values(), SHORT.values(), STARTS, QUALITY, ADJECTIVES):
        for phrase in words:
            yield from phrase.split()
    yield from ("a", "an", "and", "the", "of", "on", "in", "at", "next", "to", "with")
    yield from ("left", "right", "middle", "between", "background", "soccer")
    # ordinary words a LoRA's prompt is made of; the base model has not seen them drawn
    for phrase in (*STYLES, *LORA_OBJECTS, *LORA_PLACES, *CHARACTERS.values(), *WORN.values()):
        yield from phrase.split()
    yield from ("style", "wearing", "watercolour")
