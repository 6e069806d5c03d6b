"""Settings: frozen dataclasses whose fields carry their range, their choices and their help.

    class Training(Settings):
        noun: ClassVar[str] = "training settings"
        steps: int = setting(500, at_least=1, help="Optimiser steps.")
        schedule: Literal["cosine", "constant"] = "cosine"

What they are made of, by hand or from JSON, is checked in one place: names, types, choices (those
of the `Literal`) and ranges. Pages and command lines are made from `fields_of`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin

from composer.errors import ComposerError

Kind = TypeVar("Kind", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of one setting beside its type.

    help: one sentence for people. label: its name on a page.
    option: its name on the command line, if not its own.
    named: what messages call it, if not by its own name; hint: what is usual, for them.
    at_least, above, at_most, below: its range, of numbers; of `None` alone nothing is asked.
    """

    help: str = ""
    label: str = ""
    option: str = ""
    named: str = ""
    hint: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    @property
    def range(self) -> str:
        """As words: "1 or more", "a number from 0 to 1"; empty where every number is in it."""
        if self.at_least is not None and self.at_most is not None:
            return f"a number from {self.at_least:g} to {self.at_most:g}"
        if self.above is not None and self.below is not None:
            return f"a number between {self.above:g} and {self.below:g}"
        low = f"{self.at_least:g} or more" if self.at_least is not None else ""
        low = f"a number above {self.above:g}" if self.above is not None else low
        high = f"at most {self.at_most:g}" if self.at_most is not None else ""
        high = f"below {self.below:g}" if self.below is not None else high
        return ", ".join(filter(None, (low, high)))

    def holds(self, value: float) -> bool:
        """Whether a finite number lies in the range."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def setting(default: Any = MISSING, *, factory: Any = MISSING, **about: Any) -> Any:
    """A dataclass field with what `About` holds; `factory` makes a default that can change."""
    found = {"about": About(**about)}
    if factory is not MISSING:
        return dataclasses.field(default_factory=factory, metadata=found)
    return dataclasses.field(default=default, metadata=found)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base of all frozen dataclasses of settings; subclasses are such dataclasses too.

    Lists become tuples, text becomes a path, a whole number a float and an object the settings that
    the field's type names; nothing else is turned into anything: `true` is no number.

    Raises:
        ComposerError: a value has another type, is no choice or lies outside its range.
    """

    noun: ClassVar[str] = "settings"
    """What they are called in messages."""

    def __post_init__(self) -> None:
        for name, (kind, about) in fields_of(type(self)).items():
            value = getattr(self, name)
            named = about.named or name
            read = _read(kind, value, named)
            if read is not value:
                object.__setattr__(self, name, read)
            if _is_number(read) and not about.holds(cast("float", read)):
                wanted = about.range or "a finite number"
                hint = f" ({about.hint})" if about.hint else ""
                raise ComposerError(f"{named} is {read}: give {wanted}{hint}.")

    def to_json(self) -> dict[str, Any]:
        """As plain values, from which `from_json` makes the same."""
        return {name: _plain(getattr(self, name)) for name in fields_of(type(self))}

    @classmethod
    def from_json(cls: type[Kind], values: Mapping[str, Any]) -> Kind:
        """What `to_json` gave; ComposerError for a setting that is not known or is missing."""
        known = fields_of(cls)
        if unknown := sorted(set(values) - set(known)):
            raise ComposerError(
                f"Unknown {cls.noun} {', '.join(unknown)}: take them out, or update Composer."
            )
        needed = {
            field.name
            for field in dataclasses.fields(cls)
            if field.default is MISSING and field.default_factory is MISSING
        }
        if missing := sorted(needed - set(values)):
            raise ComposerError(f"The {cls.noun} lack {', '.join(missing)}: give a value for each.")
        return cls(**values)


@functools.cache
def fields_of(kind: type[Settings]) -> dict[str, tuple[Any, About]]:
    """The settings of a class by name, its own before those it inherits: the type of each and what
    is known of it."""
    hints = typing.get_type_hints(kind)
    own = [inspect.get_annotations(one) for one in kind.__mro__]
    return {
        field.name: (hints[field.name], field.metadata.get("about", About()))
        for field in sorted(
            dataclasses.fields(kind),
            key=lambda field: next(n for n, names in enumerate(own) if field.name in names),
        )
    }


def choices_of(kind: Any) -> tuple[str, ...]:
    """The choices of a `Literal` (or of one that may be None); none of any other type."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        for one in get_args(kind):
            if found := choices_of(one):
                return found
    return ()


def _read(kind: Any, value: Any, name: str) -> Any:
    """The value as its type has it."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ComposerError(f"{name} has more digits than any number here: give a smaller one.")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        kinds = [one for one in inner if one is not type(None)]
        settled = [one for one in kinds if isinstance(one, type) and isinstance(value, one)]
        return _read((settled or kinds)[0], value, name)
    if origin is Literal:
        if value not in inner or isinstance(value, bool):
            listed = ", ".join(map(str, inner))
            raise ComposerError(f"{name} {_short(value)} is unknown: choose one of {listed}.")
        return value
    if origin is tuple and isinstance(value, tuple | list):
        parts = cast("tuple[Any, ...] | list[Any]", value)
        read = tuple(_read(inner[0], part, name) for part in parts)
        same = isinstance(value, tuple) and all(a is b for a, b in zip(read, parts, strict=True))
        return cast("Any", value) if same else read
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        entries = cast("Mapping[str, Any]", value)
        return {key: _read(inner[1], one, name) for key, one in entries.items()}
    if kind is float and _is_number(value):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(kind, type) and issubclass(kind, Settings) and isinstance(value, Mapping):
        return kind.from_json(cast("Mapping[str, Any]", value))
    plain = isinstance(kind, type) and origin is None
    if plain and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if kind is Any:
        return value
    raise ComposerError(
        f"{name} is {_short(value)}: give {_WORDS.get(kind, 'what belongs there')}."
    )


_MOST_BITS = 128

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    """A value for a message, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _plain(value: Any) -> Any:
    """A value as JSON has it, all the way down."""
    if isinstance(value, Settings):
        return value.to_json()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in cast("tuple[Any, ...]", value)]
    return value
