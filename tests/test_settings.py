"""Settings: names, types, choices and ranges are checked in one place, whoever makes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from composer.errors import ComposerError
from composer.settings import Settings, choices_of, fields_of, setting


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    noun: ClassVar[str] = "inner settings"
    rank: int = setting(4, at_least=1)


@dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    noun: ClassVar[str] = "outer settings"
    output: Path
    steps: int = setting(3, at_least=1, at_most=10, help="How many.")
    rate: float = setting(0.5, above=0)
    share: float = setting(0.0, at_least=0, below=1)
    norm: float | None = setting(1.0, above=0)
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    words: tuple[str, ...] = ()
    named: Mapping[str, tuple[str, ...]] = setting(factory=dict)
    inner: Inner = setting(factory=Inner)
    others: tuple[Inner, ...] = ()


FULL: dict[str, Any] = {
    "output": "a/b.safetensors",
    "steps": 4,
    "rate": 1,
    "share": 0.25,
    "norm": None,
    "kind": "b",
    "flag": True,
    "words": ["x", "y"],
    "named": {"one": ["p"]},
    "inner": {"rank": 2},
    "others": [{"rank": 3}],
}


def test_json_and_back_is_the_same() -> None:
    made = Outer.from_json(FULL)
    assert made == Outer(
        output=Path("a/b.safetensors"),
        steps=4,
        rate=1.0,
        share=0.25,
        norm=None,
        kind="b",
        flag=True,
        words=("x", "y"),
        named={"one": ("p",)},
        inner=Inner(rank=2),
        others=(Inner(rank=3),),
    )
    assert type(made.rate) is float
    assert Outer.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", True, "steps is True: give a whole number."),
        ("steps", "4", "steps is '4': give a whole number."),
        ("steps", 2.7, "steps is 2.7: give a whole number."),
        ("steps", 0, "steps is 0: give a number from 1 to 10."),
        ("steps", 11, "steps is 11: give a number from 1 to 10."),
        ("steps", None, "steps is None: give a whole number."),
        ("rate", 0, "rate is 0.0: give a number above 0."),
        ("rate", math.nan, "rate is nan: give a number above 0."),
        ("rate", math.inf, "rate is inf: give a number above 0."),
        ("rate", True, "rate is True: give a number."),
        ("share", 1, "share is 1.0: give 0 or more, below 1."),
        ("norm", 0, "norm is 0.0: give a number above 0."),
        ("kind", "c", "kind 'c' is unknown: choose one of a, b."),
        ("kind", ["a"], r"kind \['a'\] is unknown: choose one of a, b."),
        ("flag", 1, "flag is 1: give true or false."),
        ("flag", "no", "flag is 'no': give true or false."),
        ("words", "x", "words is 'x': give"),
        ("words", [1], "words is 1: give text."),
        ("named", {"one": "p"}, "named is 'p': give"),
        ("named", [], r"named is \[\]: give"),
        ("inner", {"rank": 0}, "rank is 0: give 1 or more."),
        ("inner", {"rang": 1}, "Unknown inner settings rang: take them out"),
        ("inner", 3, "inner is 3: give"),
        ("output", 3, "output is 3: give a path."),
        ("steps", 1 << 5000, "steps has more digits than any number here"),
        ("rate", 1 << 5000, "rate has more digits than any number here"),
        ("words", "x" * 1000, "words is 'x{79}…: give"),
    ],
    ids=range(27),
)
def test_what_does_not_fit_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ComposerError, match=f"^{message}"):
        Outer.from_json({**FULL, name: value})
    made = Outer.from_json(FULL)
    fields = {field: getattr(made, field) for field in fields_of(Outer)}
    with pytest.raises(ComposerError, match=f"^{message}"):
        Outer(**{**fields, name: value})


def test_unknown_and_missing_names_are_named() -> None:
    with pytest.raises(ComposerError, match=r"^Unknown outer settings size, width: take them out"):
        Outer.from_json({**FULL, "width": 1, "size": 2})
    with pytest.raises(ComposerError, match=r"^The outer settings lack output: give a value"):
        Outer.from_json({"steps": 3})


def test_fields_tell_what_a_page_needs() -> None:
    kind, about = fields_of(Outer)["steps"]
    assert (kind, about.help, about.at_least, about.at_most) == (int, "How many.", 1, 10)
    assert choices_of(fields_of(Outer)["kind"][0]) == ("a", "b")
    assert choices_of(Literal["a"] | None) == ("a",)
    assert choices_of(int) == ()
