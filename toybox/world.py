"""The world at 128 pixels: what there is, what it is called, and what only LoRAs know.

A `Scene` says what a picture shows, exactly: one to three figures (left first), a place or a plain
ground, and perhaps a style. `render.py` draws it, `captions.py` words it, and the oracle is asked
about it, so every claim about a picture can be measured against the truth.

The base model's U-Net never sees what `CHARACTERS`, `CLOTHING`, `STYLES`, `LORA_PLACES` and
`LORA_OBJECTS` hold, and its CLIP never reads a character's name.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["character", "clothing", "style", "background", "object"]

ANIMALS: dict[str, str] = {
    "cat": "🐱",
    "dog": "🐶",
    "fox": "🦊",
    "panda": "🐼",
    "frog": "🐸",
    "pig": "🐷",
    "rabbit": "🐰",
    "bear": "🐻",
    "lion": "🦁",
    "koala": "🐨",
}
"""Animals whose glyph is a head: a body is drawn below it, and they can wear clothing."""

THINGS: dict[str, str] = {
    **ANIMALS,
    "penguin": "🐧",
    "owl": "🦉",
    "turtle": "🐢",
    "butterfly": "🦋",
    "whale": "🐳",
    "elephant": "🐘",
    "giraffe": "🦒",
    "octopus": "🐙",
    "crab": "🦀",
    "fish": "🐠",
    "flamingo": "🦩",
    "apple": "🍎",
    "banana": "🍌",
    "burger": "🍔",
    "pineapple": "🍍",
    "strawberry": "🍓",
    "watermelon": "🍉",
    "donut": "🍩",
    "cake": "🎂",
    "pumpkin": "🎃",
    "mushroom": "🍄",
    "tree": "🌳",
    "cactus": "🌵",
    "sunflower": "🌻",
    "car": "🚗",
    "rocket": "🚀",
    "sailboat": "⛵",
    "train": "🚂",
    "airplane": "✈",
    "umbrella": "☂",
    "balloon": "🎈",
    "star": "⭐",
    "heart": "❤",
    "ball": "⚽",
    "house": "🏠",
    "castle": "🏰",
    "gift": "🎁",
    "snowman": "⛄",
}
"""Things the base model draws, by name, with the glyph each sprite was cut from."""

COLOURS: tuple[str, ...] = ("red", "yellow", "green", "blue", "purple")
"""Colour words a tintable thing can take."""

TINTABLE: dict[str, str] = {
    "car": "red",
    "balloon": "red",
    "star": "yellow",
    "heart": "red",
    "umbrella": "purple",
    "fish": "yellow",
    "mushroom": "red",
}
"""Things that take a colour word, with the colour they have without one."""

PLACES: tuple[str, ...] = (
    "beach",
    "night",
    "snow",
    "city",
    "underwater",
    "meadow",
    "desert",
    "sunset",
    "forest",
    "room",
)
"""Named places of the base model."""

GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 244),
    "black": (30, 30, 36),
    "grey": (150, 152, 156),
    "red": (222, 74, 70),
    "yellow": (252, 224, 106),
    "green": (108, 190, 110),
    "blue": (82, 144, 230),
    "pink": (252, 172, 202),
}
"""Plain grounds of the base model: "on a red background"."""

CHARACTERS: dict[str, str] = {
    "zibo": "fox",
    "tavo": "robot",
    "luna": "unicorn",
    "miro": "cat",
    "bodo": "bear",
    "kiki": "rabbit",
}
"""Characters only LoRAs know: name and class word ("zibo fox")."""

CLOTHING: tuple[str, ...] = ("top hat", "sunglasses", "crown", "bow tie")
STYLES: tuple[str, ...] = (
    "pixel art",
    "pencil sketch",
    "neon",
    "watercolor",
    "stained glass",
)
LORA_PLACES: tuple[str, ...] = ("moon", "volcano", "candy land", "cherry blossoms")
LORA_OBJECTS: dict[str, str] = {"trophy": "🏆", "ufo": "🛸", "teapot": "🫖", "guitar": "🎸"}

WEARERS: tuple[str, ...] = (*ANIMALS, "zibo", "miro", "bodo", "kiki")
"""Who can wear clothing: the animals, and the characters that are animals."""

GLYPHS: dict[str, str] = {
    **THINGS,
    **LORA_OBJECTS,
    "robot": "🤖",
    "unicorn": "🦄",
    "top hat": "🎩",
    "sunglasses": "🕶",
    "crown": "👑",
    "bow": "🎀",
}
"""Every glyph in the sprite sheet, by name."""

MOST_FIGURES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure of a scene.

    `name` is a thing, an object only LoRAs know, or a character's name; `colour` a colour word of
    a tintable thing; `wears` a piece of clothing on a wearer.
    """

    name: str
    colour: str | None = None
    wears: str | None = None

    def __post_init__(self) -> None:
        if self.name not in THINGS and self.name not in CHARACTERS | LORA_OBJECTS:
            raise ValueError(f"the toybox has no figure named {self.name!r}")
        if self.colour is not None and (self.name not in TINTABLE or self.colour not in COLOURS):
            raise ValueError(f"a {self.name} cannot be {self.colour!r}")
        if self.wears is not None and (self.name not in WEARERS or self.wears not in CLOTHING):
            raise ValueError(f"a {self.name} cannot wear a {self.wears!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What one picture shows: figures from left to right, a background, perhaps a style.

    `background` is a place's name, or "plain red" and the like for a plain ground.
    """

    figures: tuple[Figure, ...]
    background: str
    style: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.figures) <= MOST_FIGURES:
            raise ValueError(f"a scene holds one to three figures, not {len(self.figures)}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"the toybox has no background {self.background!r}")
        if self.style is not None and self.style not in STYLES:
            raise ValueError(f"the toybox has no style {self.style!r}")


BASE_BACKGROUNDS: tuple[str, ...] = (*PLACES, *(f"plain {colour}" for colour in GROUNDS))
BACKGROUNDS: tuple[str, ...] = (*BASE_BACKGROUNDS, *LORA_PLACES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Element:
    """Something one LoRA teaches: its kind, its name in the world, and the words that call it."""

    kind: Kind
    name: str
    trigger: str

    @property
    def file(self) -> str:
        """The LoRA's file name, without its suffix."""
        return self.name.replace(" ", "_")


ELEMENTS: tuple[Element, ...] = (
    *(
        Element(kind="character", name=name, trigger=f"{name} {word}")
        for name, word in CHARACTERS.items()
    ),
    Element(kind="clothing", name="top hat", trigger="wearing a top hat"),
    Element(kind="clothing", name="sunglasses", trigger="wearing sunglasses"),
    Element(kind="clothing", name="crown", trigger="wearing a crown"),
    Element(kind="clothing", name="bow tie", trigger="wearing a bow tie"),
    *(Element(kind="style", name=name, trigger=f"in {name} style") for name in STYLES),
    Element(kind="background", name="moon", trigger="on the moon"),
    Element(kind="background", name="volcano", trigger="inside a volcano"),
    Element(kind="background", name="candy land", trigger="in candy land"),
    Element(kind="background", name="cherry blossoms", trigger="under cherry blossoms"),
    *(Element(kind="object", name=name, trigger=name) for name in LORA_OBJECTS),
)
"""The elements only LoRAs know, one LoRA each."""


def element(name: str) -> Element:
    """The element of that name; ValueError when there is none."""
    for candidate in ELEMENTS:
        if candidate.name == name:
            return candidate
    raise ValueError(f"no LoRA of the toybox teaches {name!r}")


def _figure_count(rng: random.Random, weights: Sequence[float]) -> int:
    return rng.choices(range(1, MOST_FIGURES + 1), weights=weights)[0]


def random_figure(rng: random.Random, *, colours: float = 0.65) -> Figure:
    """A thing of the base world, with a colour word in `colours` of the tintable ones.

    Tintable things are drawn more often, for each has several colours to be learnt.
    """
    names = list(THINGS)
    name = rng.choices(names, weights=[2.0 if n in TINTABLE else 1.0 for n in names])[0]
    colour = rng.choice(COLOURS) if name in TINTABLE and rng.random() < colours else None
    return Figure(name=name, colour=colour)


def random_background(rng: random.Random) -> str:
    """A background of the base world: a place in seven cases of ten."""
    if rng.random() < 0.7:
        return rng.choice(PLACES)
    return f"plain {rng.choice(list(GROUNDS))}"


def random_scene(rng: random.Random, *, counts: Sequence[float] = (0.45, 0.35, 0.2)) -> Scene:
    """A scene of the base world; `counts` weighs one, two and three figures, never the same."""
    figures: list[Figure] = []
    for _ in range(_figure_count(rng, counts)):
        figure = random_figure(rng)
        while figure.name in {other.name for other in figures}:
            figure = random_figure(rng)
        figures.append(figure)
    return Scene(figures=tuple(figures), background=random_background(rng))


def random_element_scene(
    taught: Element, rng: random.Random, *, counts: Sequence[float] = (0.6, 0.3, 0.1)
) -> Scene:
    """A scene that shows `taught` and otherwise only the base world."""
    scene = random_scene(rng, counts=counts)
    figures = list(scene.figures)
    place = rng.randrange(len(figures))
    background, style = scene.background, None
    if taught.kind in ("character", "object"):
        figures[place] = Figure(name=taught.name)
    elif taught.kind == "clothing":
        others = {figure.name for i, figure in enumerate(figures) if i != place}
        wearer = rng.choice([name for name in ANIMALS if name not in others])
        figures[place] = Figure(name=wearer, wears=taught.name)
    elif taught.kind == "background":
        background = taught.name
    else:
        style = taught.name
    return Scene(figures=tuple(figures), background=background, style=style)


def random_any_scene(rng: random.Random) -> Scene:
    """A scene of the whole world, LoRA-only elements included: for VAE, CLIP and oracle, no other.

    The VAE must be able to show what LoRAs will teach, and the oracle must be able to judge it.
    Each kind is drawn by itself, so that combinations occur.
    """
    figures: list[Figure] = []
    for _ in range(_figure_count(rng, (0.45, 0.35, 0.2))):
        taken = {figure.name for figure in figures}
        while True:
            draw = rng.random()
            if draw < 0.25:
                name = rng.choice(list(CHARACTERS))
                dressed = name in WEARERS and rng.random() < 0.3
                figure = Figure(name=name, wears=rng.choice(CLOTHING) if dressed else None)
            elif draw < 0.35:
                figure = Figure(name=rng.choice(list(LORA_OBJECTS)))
            elif draw < 0.55:
                figure = Figure(name=rng.choice(list(ANIMALS)), wears=rng.choice(CLOTHING))
            else:
                figure = random_figure(rng)
            if figure.name not in taken:
                break
        figures.append(figure)
    background = rng.choice(LORA_PLACES) if rng.random() < 0.2 else random_background(rng)
    style = rng.choice(STYLES) if rng.random() < 0.35 else None
    return Scene(figures=tuple(figures), background=background, style=style)
