"""Axes of a grid of pictures: what changes along it, and the requests in its cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import LoraRow, Sum, read_recipe
from composer.settings import fields_of
from composer.studio.requests import ComposeRequest

MOST_CELLS = 1000
"""Of one grid: beyond it something was mistyped."""

Change = Callable[[ComposeRequest], ComposeRequest]
BARE, ALONE = "bare", "alone"
LORA = "lora:"
_FIELDS = {
    name: (field, kind)
    for field, (kind, about) in fields_of(Request).items()
    for name in (field, about.option)
    if name and field != "count"
}
"""A request's fields by their names and by those of their options."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What changes, in words, and the label of each place with what it makes of a request."""

    name: str
    places: tuple[tuple[str, Change], ...]


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One picture: its label on each axis, and how it is asked for.

    way: which of the labels is its way; None for none.
    """

    labels: tuple[str, ...]
    asked: ComposeRequest
    way: int | None = None


def read_axis(text: str) -> Axis:
    """Of one line, NAME=VALUE,VALUE: values are separated by | where one of them stands there.

    NAME is a field of the request (seed, steps, cfg, sampler, prompt ...), `way` (a recipe's key,
    `bare` for no LoRAs, `alone:NAME` for one), `lora:NAME` (its weight; 0 leaves it out), or a
    parameter of the recipe (density ...).

    Raises:
        ComposerError: it is not written so, or a value cannot be.
    """
    name, equals, rest = text.partition("=")
    name = name.strip()
    values = [value.strip() for value in rest.split("|" if "|" in rest else ",")]
    if not name or not equals or not all(values):
        raise ComposerError(
            f"The axis {text[:80]!r} is not understood: write NAME=VALUE,VALUE, as in seed=1,2,3 "
            "or way=weighted|ties:density=0.3,rank=8."
        )
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise ComposerError(f"The axis {name} holds {twice!r} twice: take one out.")
    return Axis(name=name, places=tuple((value, _change(name, value)) for value in values))


def _change(name: str, value: str) -> Change:
    if name == "way":
        return _way(value)
    if name.startswith(LORA):
        return _weight(name.removeprefix(LORA), _number(name, value, float))
    if name in _FIELDS:
        field, kind = _FIELDS[name]
        kinds = {kind, *getattr(kind, "__args__", ())}
        read: Any = value
        if kinds & {int, float}:
            read = _number(name, value, int if int in kinds else float)
        return lambda asked: replace(asked, request=replace(asked.request, **{field: read}))
    return _parameter(name, value)


def _number(name: str, value: str, kind: type[int] | type[float]) -> float:
    try:
        number = kind(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = "a whole number" if kind is int else "a number"
        raise ComposerError(f"The axis {name} holds {value[:40]!r}: give {what}.")
    return number


def _way(value: str) -> Change:
    if value == BARE:
        return lambda asked: replace(asked, rows=(), recipe=Sum())
    kind, _, name = value.partition(":")
    if kind == ALONE and name:
        alone = (LoraRow(name=name),)
        return lambda asked: replace(asked, rows=alone, recipe=Sum())
    recipe = read_recipe(value)
    return lambda asked: replace(
        asked, rows=asked.recipe.chosen_again(asked.rows, recipe), recipe=recipe
    )


def _weight(name: str, weight: float) -> Change:
    def weighed(asked: ComposeRequest) -> ComposeRequest:
        """A way without the LoRA stays as it is."""
        rows = [replace(row, weight=weight) for row in asked.rows if row.name == name]
        return asked.with_rows(rows)

    return weighed


def _parameter(name: str, value: str) -> Change:
    def changed(asked: ComposeRequest) -> ComposeRequest:
        kind = type(asked.recipe)
        if name not in asked.recipe.parameters:
            known = ", ".join(asked.recipe.parameters) or "none"
            raise ComposerError(
                f"There is no axis {name!r}: {asked.recipe.title} has no such parameter, it has "
                f"{known}; and a request has none, it has {', '.join(_FIELDS)}."
            )
        read = kind.read_parameters(f"{name}={value}")
        given = {**asked.recipe.parameters, name: read.parameters[name]}
        return replace(asked, recipe=kind(**given))

    return changed


def cells_of(asked: ComposeRequest, axes: Sequence[Axis]) -> tuple[GridCell, ...]:
    """Every combination of places, the last axis fastest; ways are chosen before their parameters.

    Raises:
        ComposerError: an axis is there twice, a cell cannot be, or there are too many.
    """
    names = [axis.name for axis in axes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ComposerError(f"The axis {twice!r} is there twice: take one of them out.")
    count = math.prod(len(axis.places) for axis in axes)
    if count > MOST_CELLS:
        raise ComposerError(
            f"The grid has {count} pictures; {MOST_CELLS} are the most. Shorten an axis."
        )
    missing = {axis.name.removeprefix(LORA) for axis in axes if axis.name.startswith(LORA)}
    missing -= {row.name for row in asked.rows}
    asked = asked.with_rows([LoraRow(name=name) for name in sorted(missing)])
    first = sorted(range(len(axes)), key=lambda number: names[number] != "way")
    way = names.index("way") if "way" in names else None
    cells: list[GridCell] = []
    for chosen in itertools.product(*(axis.places for axis in axes)):
        made = replace(asked, request=replace(asked.request, count=1))
        for number in first:
            made = chosen[number][1](made)
        labels = tuple(label for label, _ in chosen)
        cells.append(GridCell(labels=labels, asked=made, way=way))
    return tuple(cells)
