"""Axes of a grid of pictures: what changes along it, and the requests in its cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import RECIPES, LoraRow, Recipe, Sum, read_recipe
from composer.settings import choices_of, fields_of
from composer.studio.requests import ComposeRequest

MOST_CELLS = 1000
"""Of one grid: beyond it something was mistyped."""

Change = Callable[[ComposeRequest], ComposeRequest]
BARE, ALONE = "bare", "alone"
LORA = "lora:"
_FIELDS = {
    name: (own, kind)
    for own, (kind, about) in fields_of(Request).items()
    for name in (own, about.option)
    if name and own != "count"
}
"""A request's fields by their names and by those of their options."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What changes, in words, and the label of each place with what it makes of a request.

    parameter: whether it is a recipe's; ways of fusing that have no such one stay as they are.
    words: labels for people, where they are others.
    """

    name: str
    places: tuple[tuple[str, Change], ...]
    parameter: bool = False
    words: Mapping[str, str] = field(default_factory=dict[str, str])

    def titled(self, label: str) -> str:
        """A place in words: ways and prompts name themselves."""
        named = self.name in ("way", "prompt")
        return self.words.get(label, label if named else f"{self.name} {label}")


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One picture: its label on each axis, and how it is asked for.

    way: which of the labels is its way; None for none.
    """

    labels: tuple[str, ...]
    asked: ComposeRequest
    way: int | None = None

    def by(self, way: str) -> tuple[str, ...] | None:
        """The labels of the cell that differs from this one in its way alone; None without ways."""
        if self.way is None:
            return None
        return (*self.labels[: self.way], way, *self.labels[self.way + 1 :])


def read_axis(text: str) -> Axis:
    """Of one line, NAME=VALUE,VALUE: values are separated by | where one of them stands there.

    NAME is a field of the request (seed, steps, cfg, sampler, prompt ...), `way` (a recipe's key,
    `bare` for no LoRAs, `alone:NAME` for one), `lora:NAME` (its weight; 0 leaves it out), or a
    parameter of every recipe that has it (density ...) or of one (ties:density ...).

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
    return Axis(
        name=name,
        places=tuple((value, _change(name, value)) for value in values),
        parameter=not (name == "way" or name.startswith(LORA) or name in _FIELDS),
    )


def _change(name: str, value: str) -> Change:
    if name == "way":
        return to_way(value)
    if name.startswith(LORA):
        return _weight(name.removeprefix(LORA), _number(name, value, float))
    if name in _FIELDS:
        of_request, kind = _FIELDS[name]
        kinds = {kind, *getattr(kind, "__args__", ())}
        read: Any = value
        if kinds & {int, float}:
            read = _number(name, value, int if int in kinds else float)
        return lambda asked: replace(asked, request=replace(asked.request, **{of_request: read}))
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


def to_way(value: str) -> Change:
    """The same request, fused so.

    Raises:
        ComposerError: there is no such way.
    """
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


def _parameter(axis: str, value: str) -> Change:
    def changed(asked: ComposeRequest) -> ComposeRequest:
        kind = type(asked.recipe)
        if axis not in _parameters_of(kind):
            return asked
        name = axis.rpartition(":")[2]
        read = kind.read_parameters(f"{name}={value}")
        given = {**asked.recipe.parameters, name: read.parameters[name]}
        return replace(asked, recipe=kind(**given))

    return changed


def _parameters_of(kind: type[Recipe]) -> list[str]:
    """The names of the axes that are parameters of a recipe."""
    names = [] if kind.source else list(kind().parameters)
    return [axis for name in names for axis in (name, f"{kind.kind}:{name}")]


@dataclass(frozen=True, kw_only=True)
class Variable:
    """What an axis can be, for people: `ways` are the recipes whose parameter it is."""

    name: str
    title: str
    example: str
    ways: tuple[str, ...] = ()


def variables() -> tuple[Variable, ...]:
    """What a comparison can vary beside its ways, its seeds and the weights of its LoRAs."""
    found = [Variable(name=name, title=title, example=example) for name, title, example in _VARIED]
    parameters: dict[Any, Variable] = {}
    for kind in RECIPES.values():
        for name, (type_, about) in () if kind.source else fields_of(kind).items():
            if name == "file":
                continue
            # one that several recipes have alike is one; another of the same name is that recipe's
            alone = name in _FIELDS or any(
                one.name == name and (name, about) not in parameters for one in parameters.values()
            )
            before = parameters.get((name, about))
            label = about.label or name
            words = f"{label} of {kind.title}" if alone and label != kind.title else label
            parameters[name, about] = Variable(
                name=f"{kind.kind}:{name}" if alone else name,
                title=words,
                example=", ".join(choices_of(type_)) or f"{getattr(kind(), name)}",
                ways=(*(before.ways if before else ()), kind.kind),
            )
    return (*found, *parameters.values())


_VARIED = (
    ("prompt", "Prompt", "a fox at night | a fox on the beach"),
    ("negative", "Negative prompt", "blurry | dark, blurry"),
    ("seed", "Seed", "1, 7, 42"),
    ("steps", "Steps", "10, 20, 30"),
    ("cfg", "CFG scale", "2, 3, 5"),
    ("sampler", "Sampler", "Euler, Euler a"),
    ("schedule", "Schedule", "Automatic, Karras"),
    ("clip_skip", "Clip skip", "1, 2"),
)


def with_loras_of(axes: Sequence[Axis], asked: ComposeRequest) -> ComposeRequest:
    """The request with a row for each LoRA that an axis weighs and that has none yet."""
    missing = {axis.name.removeprefix(LORA) for axis in axes if axis.name.startswith(LORA)}
    missing -= {row.name for row in asked.rows}
    return asked.with_rows([LoraRow(name=name) for name in sorted(missing)])


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
    asked = with_loras_of(axes, asked)
    first = sorted(range(len(axes)), key=lambda number: names[number] != "way")
    way = names.index("way") if "way" in names else None
    cells: list[GridCell] = []
    for chosen in itertools.product(*(axis.places for axis in axes)):
        made = replace(asked, request=replace(asked.request, count=1))
        for number in first:
            made = chosen[number][1](made)
        labels = tuple(label for label, _ in chosen)
        cells.append(GridCell(labels=labels, asked=made, way=way))
    _check_parameters(axes, {type(cell.asked.recipe) for cell in cells})
    return tuple(cells)


def _check_parameters(axes: Sequence[Axis], kinds: Collection[type[Recipe]]) -> None:
    """Refuse an axis that is no recipe's parameter and nothing else."""
    known = sorted({name for kind in kinds for name in _parameters_of(kind) if ":" not in name})
    for axis in axes:
        if axis.parameter and not any(axis.name in _parameters_of(kind) for kind in kinds):
            titles = ", ".join(sorted(kind.title for kind in kinds))
            raise ComposerError(
                f"There is no axis {axis.name[:40]!r}: a request has {', '.join(_FIELDS)}; and the "
                f"parameters of {titles} are: {', '.join(known) or 'none'}."
            )
