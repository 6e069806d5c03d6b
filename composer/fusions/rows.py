"""The LoRAs that were chosen for a picture: how much of each, and where and when it is active.

A pin fixes the weights of units by hand, whatever the gates there or the fusion would give; it is
written in one line, `UNITS: NAME=WEIGHT, NAME=WEIGHT`. Spans only ever switch off, so a LoRA that
is limited in steps and in depth is active inside both alone, and in a pinned unit too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, cast

from composer.errors import ComposerError
from composer.families import FAMILIES, Family, Places
from composer.fusions.places import Place

if TYPE_CHECKING:
    from composer.mixture import Mixture

Span = tuple[float, float]
Part = Literal["steps", "depth"]
ALWAYS: Span = (0.0, 1.0)
MAX_WEIGHT = 10.0
MAX_PINS = 256
MAX_LENGTH = 2000  # of one pin's line
BLOCK_PRESETS: Mapping[str, tuple[float, ...]] = {
    name: tuple(map(float, digits))
    for name, digits in {
        # of SD 1.x and 2.x, as the block weight extension of A1111 ships them
        "NONE": "0" * 17,
        "ALL": "1" * 17,
        "INS": "11110000000000000",
        "IND": "10001110000000000",
        "INALL": "11111110000000000",
        "MIDD": "10001111111100000",
        "OUTD": "10000000111100000",
        "OUTS": "10000000000011111",
        "OUTALL": "10000000111111111",
        # of SDXL, as ComfyUI's Inspire Pack does
        "SDXL-NONE": "0" * 12,
        "SDXL-ALL": "1" * 12,
        "SDXL-INALL": "111110000000",
        "SDXL-MIDALL": "100001000000",
        "SDXL-OUTALL": "100000111111",
    }.items()
} | {
    "ALL0.5": (0.5,) * 17,
    "MIDD0.2": (1, 0, 0, 0, 0, 0, 0.2, 0.4, 0.4, 0.2, *(0,) * 7),
    "MIDD0.8": (1, 0, 0, 0, 0, 0.5, 0.8, 0.8, 0.4, *(0,) * 8),
    "MOUT": (1, 0, 0, 0, 0, 0, *(1,) * 8, 0.5, 0, 0),
}
"""Names of usual block weights."""
PARTS: tuple[Part, ...] = ("steps", "depth")


@dataclass(frozen=True, kw_only=True)
class LoraRow:
    """One LoRA that was chosen.

    weight: of a sum, its weight; under gates, how many times what they give it counts.
    text_encoder: its weight in the text encoder, if it differs; gates do not ask it.
    steps: from which part of the sampling to which it is active, 0 to 1.
    depth: from which part of the U-Net's units to which, in the order it runs them, 0 to 1.
    place: where in the picture it acts, if the recipe asks for places; None for everywhere.
    """

    name: str
    on: bool = True
    weight: float = 1.0
    text_encoder: float | None = None
    steps: Span = ALWAYS
    depth: Span = ALWAYS
    place: Place | None = None

    def __post_init__(self) -> None:
        for part in PARTS:
            start, end = self.span(part)
            if not 0.0 <= start < end <= 1.0:
                raise ComposerError(
                    f"The LoRA {self.name!r} is to be active from {start:g} to {end:g} of the "
                    f"{part}: give a start and a later end, from 0 to 1."
                )
        for part, weight in (("", self.weight), (" for the text encoder", self.text_encoder)):
            if weight is not None and not (math.isfinite(weight) and abs(weight) <= MAX_WEIGHT):
                raise ComposerError(
                    f"The weight of the LoRA {self.name!r}{part} is {weight}: give a number "
                    f"between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}; 0.5 to 1 is usual."
                )

    @property
    def weights(self) -> dict[str, float]:
        """By part of the model."""
        words = self.weight if self.text_encoder is None else self.text_encoder
        return {"unet": self.weight, "text_encoder": words}

    @property
    def active(self) -> bool:
        """Switched on, with some weight somewhere."""
        return self.on and any(self.weights.values())

    def span(self, part: Part) -> Span:
        """From where to where in the steps or the depth it is active."""
        return self.steps if part == "steps" else self.depth


@dataclass(frozen=True)
class Pin:
    """Weights that hold in some units, by LoRA; those that are not named have weight 0 there.

    units: the name of one, or a pattern of theirs as for files, `unet.mid_block.*`; `unet.` may be
        left out. A ? before it allows that there is none: many LoRAs leave some blocks alone.
    numbers: how many the string of block weights has that it comes from, and so for which families
        it is; 0 if it comes from none.
    """

    units: str
    weights: Mapping[str, float]
    numbers: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if not self.units.strip() or not self.weights:
            raise ComposerError(f"The pin {str(self)!r} {_HOW}")
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and abs(weight) <= MAX_WEIGHT):
                raise ComposerError(
                    f"The weight of {name!r} in the pin of {self.units} is {weight}: give a number "
                    f"between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}."
                )

    @classmethod
    def read(cls, text: str) -> Pin:
        """Of one line, `UNITS: NAME=WEIGHT, NAME=WEIGHT`.

        Raises:
            ComposerError: it is not written so.
        """
        units, _, said = text.partition(":")
        weights: dict[str, float] = {}
        try:
            if len(text) > MAX_LENGTH:
                raise ValueError("it is too long")
            begun: list[str] = []  # of a name, which may hold commas
            for part in said.split(","):
                name, equals, weight = part.rpartition("=")
                begun.append(name if equals else part)
                if equals:
                    weights[",".join(begun).strip()] = float(weight)
                    begun = []
            if "" in weights or "".join(begun).strip():
                raise ValueError("a weight has no name, or a name no weight")
        except ValueError:
            raise ComposerError(f"The pin {text[:MAX_LENGTH]!r} {_HOW}") from None
        return cls(units.strip(), weights)

    def __str__(self) -> str:
        said = ", ".join(
            f"{name}={float(weight)!r}".removesuffix(".0") for name, weight in self.weights.items()
        )
        return f"{self.units}: {said}"

    def among(self, names: Sequence[str]) -> Pin:
        """The same for these alone, of which there is one at least."""
        kept = {name: weight for name, weight in self.weights.items() if name in names}
        return replace(self, weights=kept or {names[0]: 0.0})

    def renamed(self, names: Mapping[str, str]) -> Pin:
        """The same for LoRAs that are called otherwise; one without another name keeps its own."""
        return replace(self, weights={names.get(n, n): w for n, w in self.weights.items()})

    def means(self, unit: str) -> bool:
        """Whether it holds in that unit."""
        pattern = self.units.removeprefix("?")
        return any(fnmatchcase(name, pattern) for name in (unit, unit.removeprefix("unet.")))


_HOW = (
    "is not understood. Write the unit, a colon and weights, as in "
    "unet.mid_block.attentions.0: zibo=1, neon=0.5."
)


def read_pins(text: str) -> tuple[Pin, ...]:
    """Of several lines; empty ones count for nothing.

    Raises:
        ComposerError: a line is not understood, or there are too many.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > MAX_PINS:
        raise ComposerError(f"There are {len(lines)} pins; {MAX_PINS} are the most.")
    return tuple(map(Pin.read, lines))


def with_blocks(
    rows: Sequence[LoraRow], blocks: Mapping[str, Sequence[float]]
) -> tuple[tuple[LoraRow, ...], tuple[Pin, ...]]:
    """The rows and pins of a weighted sum with block weights for some of its LoRAs.

    blocks: by a row's name, how many times its weight holds in each block of the model's family;
        once in one that has no number.

    Raises:
        ComposerError: they are of several families.
    """
    counts = {len(numbers) for numbers in blocks.values() if numbers}
    if not counts:
        return tuple(rows), ()
    family = next((family for family in FAMILIES if counts <= family.layouts.keys()), None)
    if family is None:
        raise ComposerError(
            f"The prompt has block weights of {' and of '.join(map(str, sorted(counts)))} numbers, "
            "which are of several families of models. Keep those of the model."
        )
    by_row: dict[str, dict[Places, float]] = {}
    for row in rows:
        numbers = blocks.get(row.name, ())
        layout = family.layouts[len(numbers)] if numbers else ()
        by_row[row.name] = dict(zip(layout, numbers, strict=True))
    text, *others = family.layouts[max(counts)]
    words = [
        replace(row, text_encoder=row.weights["text_encoder"] * by_row[row.name].get(text, 1.0))
        for row in rows
    ]
    pins = tuple(
        Pin(
            units,
            {row.name: row.weight * by_row[row.name].get(places, 1.0) for row in rows if row.on},
            numbers=max(counts),
        )
        for places in others
        if any(numbers.get(places, 1.0) != 1 for numbers in by_row.values())
        for units in block_units(places)
    )
    return tuple(words), pins


def block_units(places: Places) -> tuple[str, ...]:
    """The units of the U-Net in a block, as pins name them if any are: attention and resnet as
    one, and the sampler beside them."""
    names = [place.removeprefix("unet.") for place in places if ".resnets." not in place]
    return tuple(
        f"?{name}.*" if name == "mid_block" else f"?{name.replace('.attentions.', '.[ar]*.')}"
        for name in names
    )


def spans_to_record(rows: Mapping[str, LoraRow], pins: Iterable[Pin]) -> dict[str, Any]:
    """For a picture's record, by the rows' keys: the spans that are not all, and the pins."""
    record: dict[str, Any] = {}
    for part in PARTS:
        spans = {name: row.span(part) for name, row in rows.items()}
        limited = {name: list(spans[name]) for name in sorted(spans) if spans[name] != ALWAYS}
        if limited:
            record[part] = limited
    if lines := [str(pin) for pin in pins]:
        record["pins"] = lines
    return record


def places_to_record(rows: Mapping[str, LoraRow]) -> dict[str, Any]:
    """For a picture's record, by the rows' keys: the places of those that have one."""
    places = {name: str(row.place) for name, row in sorted(rows.items()) if row.place}
    return {"places": places} if places else {}


def recorded_places(fusion: Mapping[str, Any]) -> dict[str, Place]:
    """Of a picture's record, by LoRA; what is none is left out, for anybody may have written it."""
    found: dict[str, Place] = {}
    given = fusion.get("places")
    if isinstance(given, Mapping):
        for name, text in cast("Mapping[Any, Any]", given).items():
            with contextlib.suppress(ComposerError):
                found[str(name)] = Place.read(str(text))
    return found


def recorded_spans(fusion: Mapping[str, Any]) -> dict[str, dict[Part, Span]]:
    """Of a picture's record, by LoRA; what is none is left out, for anybody may have written it."""
    found: dict[str, dict[Part, Span]] = {}
    for part in PARTS:
        given = fusion.get(part)
        if isinstance(given, Mapping):
            for name, value in cast("Mapping[Any, Any]", given).items():
                if (span := _span(value)) != ALWAYS:
                    found.setdefault(str(name), {})[part] = span
    return found


def recorded_pins(fusion: Mapping[str, Any]) -> tuple[Pin, ...]:
    """Of a picture's record, likewise."""
    lines = fusion.get("pins")
    pins: list[Pin] = []
    for line in cast("list[Any]", lines if isinstance(lines, list) else [])[:MAX_PINS]:
        with contextlib.suppress(ComposerError):
            pins.append(Pin.read(str(line)))
    return tuple(pins)


def limit(mixture: Mixture, rows: Mapping[str, LoraRow], pins: Iterable[Pin]) -> None:
    """Limit the experts of a mixture, all of which may be active until now, by their names there.

    Raises:
        ComposerError: a pin is for no unit of this mixture, or for a site without a unit.
    """
    # the words are read in full, as they are under a limit to steps
    unet = frozenset(name for name, unit in mixture.units.items() if unit.plan.part == "unet")
    for name, row in rows.items():
        for outside in _outside(row.steps):
            mixture.toggle(name, False, steps=outside)
    for name, row in rows.items():
        for outside in _outside(row.depth):
            mixture.toggle(name, False, units=unet, depth=outside)
    for pin in pins:
        units = pinned(pin, mixture.units)
        alone = pin.units.removeprefix("?")
        if not units and f"unet.{alone}" in mixture.sites:
            raise ComposerError(
                f"The pin {str(pin)!r} is for {alone}, which these LoRAs change and which has no "
                "weights of its own: it has those of what lies in no block. Leave its block weight "
                "at 1."
            )
        for unit in units:
            mixture.pin(unit, pin.weights)


def check_family(pins: Iterable[Pin], family: Family) -> None:
    """Refuse block weights of another family of models.

    Raises:
        ComposerError: how many numbers they have, and how many the family has.
    """
    for pin in pins:
        if pin.numbers and pin.numbers not in family.layouts:
            names = [name for name, some in BLOCK_PRESETS.items() if len(some) in family.layouts]
            raise ComposerError(
                f"The prompt has block weights of {pin.numbers} numbers, and those of "
                f"{family.name} are {' or '.join(map(str, family.layouts))}. Write as many, or a "
                f"name: {', '.join(names)}."
            )


def check_pins(pins: Iterable[Pin], chosen: Sequence[str]) -> None:
    """Refuse a pin for a LoRA that was not chosen.

    Raises:
        ComposerError: which pin and which LoRA.
    """
    for pin in pins:
        if strange := next((name for name in pin.weights if name not in chosen), None):
            known = ", ".join(chosen) or "none"
            raise ComposerError(
                f"The pin of {pin.units} names the LoRA {strange!r}, which is not chosen for "
                f"this picture; chosen are {known}. Choose it, or take it out of the pin."
            )


def pinned(pin: Pin, units: Iterable[str]) -> tuple[str, ...]:
    """The units that a pin holds in.

    Raises:
        ComposerError: there are none, and must be some.
    """
    units = tuple(units)
    found = tuple(unit for unit in units if pin.means(unit))
    if not found and not pin.units.startswith("?"):
        some = ", ".join(units[:3])
        raise ComposerError(
            f"The pin {str(pin)!r} is for no unit of this picture's {len(units)}, which are called "
            f"{some} and the like. Write one of their names, or a pattern such as *mid_block*."
        )
    return found


def _span(value: object) -> Span:
    try:
        start, end = (float(number) for number in cast(Any, value))
    except (OverflowError, TypeError, ValueError):
        return ALWAYS
    return (start, end) if 0.0 <= start < end <= 1.0 else ALWAYS


def _outside(span: Span) -> list[Span]:
    """What lies before and after this part of all, 0 to 1."""
    return [(a, b) for a, b in ((0.0, span[0]), (span[1], 1.0)) if a < b]
