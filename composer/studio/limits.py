"""Where and when each LoRA speaks, whatever fuses them: parts of the steps and of the depth, pins.

A pin fixes the weights of units by hand, whatever the gates there or the fusion would say; it is
written in one line, `UNITS: NAME=WEIGHT, NAME=WEIGHT`. Limits only ever switch off, so one who is
limited in steps and in depth speaks inside both alone, and in a pinned unit too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

from composer.errors import ComposerError

if TYPE_CHECKING:
    from composer.mixture import Mixture
    from composer.studio.requests import LoraRow

Span = tuple[float, float]
ALWAYS: Span = (0.0, 1.0)
MAX_WEIGHT = 10.0
MAX_PINS = 256
MAX_LENGTH = 2000  # of one pin's line
_PARTS = ("steps", "depth")


@dataclass(frozen=True)
class Pin:
    """Weights that hold in some units, by LoRA; those that are not named are silent there.

    units: the name of one, or a pattern of theirs as for files, `unet.mid_block.*`; `unet.` may be
        left out.
    """

    units: str
    weights: Mapping[str, float]

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
        return Pin(self.units, kept or {names[0]: 0.0})

    def means(self, unit: str) -> bool:
        """Whether it holds in that unit."""
        return any(fnmatchcase(name, self.units) for name in (unit, unit.removeprefix("unet.")))


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


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one picture; steps, depth: by LoRA, of those alone that do not speak in all of it."""

    steps: Mapping[str, Span] = field(default_factory=dict[str, Span])
    depth: Mapping[str, Span] = field(default_factory=dict[str, Span])
    pins: tuple[Pin, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[LoraRow], pins: Iterable[Pin]) -> Limits:
        """Of the LoRAs that were chosen."""
        rows = tuple(rows)
        return cls(
            steps={row.name: row.steps for row in rows if row.steps != ALWAYS},
            depth={row.name: row.depth for row in rows if row.depth != ALWAYS},
            pins=tuple(pins),
        )

    def renamed(self, names: Mapping[str, str]) -> Limits:
        """The same for LoRAs that are called otherwise; one without another name keeps its own."""
        return Limits(
            steps={names.get(name, name): span for name, span in self.steps.items()},
            depth={names.get(name, name): span for name, span in self.depth.items()},
            pins=tuple(
                Pin(pin.units, {names.get(name, name): w for name, w in pin.weights.items()})
                for pin in self.pins
            ),
        )

    def among(self, chosen: Iterable[str], speak: Iterable[str]) -> Limits:
        """The limits of those that speak, of those that were chosen.

        Raises:
            ComposerError: a pin is for one that was not chosen.
        """
        chosen, speak = tuple(chosen), tuple(speak)
        for pin in self.pins:
            if strange := next((name for name in pin.weights if name not in chosen), None):
                known = ", ".join(chosen) or "none"
                raise ComposerError(
                    f"The pin of {pin.units} names the LoRA {strange!r}, which is not chosen for "
                    f"this picture; chosen are {known}. Choose it, or take it out of the pin."
                )
        return Limits(
            steps={name: span for name, span in self.steps.items() if name in speak},
            depth={name: span for name, span in self.depth.items() if name in speak},
            pins=tuple(pin.among(speak) for pin in self.pins) if speak else (),
        )

    @property
    def by_unit(self) -> bool:
        """Whether they need a mixture of several units."""
        return bool(self.depth or self.pins)

    def told(self) -> dict[str, Any]:
        """For the picture's record; nothing where there are none."""
        spans: Mapping[str, Mapping[str, Span]] = {"steps": self.steps, "depth": self.depth}
        told: dict[str, Any] = {
            part: {name: list(found[name]) for name in sorted(found)}
            for part, found in spans.items()
            if found
        }
        if self.pins:
            told["pins"] = [str(pin) for pin in self.pins]
        return told

    @classmethod
    def recorded(cls, fusion: Mapping[str, Any]) -> Limits:
        """Of a picture's record; what is none is left out, for anybody may have written it."""
        spans: dict[str, dict[str, Span]] = {}
        for part in _PARTS:
            found = fusion.get(part)
            given = cast("Mapping[Any, Any]", found if isinstance(found, Mapping) else {})
            read = {str(name): _span(value) for name, value in given.items()}
            spans[part] = {name: span for name, span in read.items() if span != ALWAYS}
        lines = fusion.get("pins")
        pins: list[Pin] = []
        for line in cast("list[Any]", lines if isinstance(lines, list) else [])[:MAX_PINS]:
            try:
                str(line).encode()
                pins.append(Pin.read(str(line)))
            except (ComposerError, UnicodeEncodeError):
                continue
        return cls(**spans, pins=tuple(pins))

    def tell(self, mixture: Mixture) -> None:
        """Limit the experts of a mixture, in which all may speak until now.

        Raises:
            ComposerError: a pin is for no unit of this mixture.
        """
        # the words are read in full, as they are under a limit to steps
        unet = frozenset(name for name, unit in mixture.units.items() if unit.plan.part == "unet")
        for name, span in self.steps.items():
            for silent in _outside(span):
                mixture.toggle(name, False, steps=silent)
        for name, span in self.depth.items():
            for silent in _outside(span):
                mixture.toggle(name, False, units=unet, depth=silent)
        for pin in self.pins:
            for unit in pinned(pin, mixture.units):
                mixture.pin(unit, pin.weights)


def pinned(pin: Pin, units: Iterable[str]) -> tuple[str, ...]:
    """The units that a pin holds in.

    Raises:
        ComposerError: there are none.
    """
    units = tuple(units)
    found = tuple(unit for unit in units if pin.means(unit))
    if not found:
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
