"""Options of a command, made from the fields of its settings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer

from composer.settings import About, Settings, choices_of, fields_of

Command = TypeVar("Command", bound=Callable[..., None])


def with_settings(
    *kinds: type[Settings],
    arguments: Sequence[str] = (),
    without: Collection[str] = (),
    **defaults: Any,
) -> Callable[[Command], Command]:
    """Give a command, in place of its `**settings`, an option for each setting of `kinds` that has
    a help text.

    They are checked where the settings are made of them (`of_kind`).

    arguments: settings that come first, by their place and without a default.
    without: settings that are asked for otherwise.
    defaults: that differ from those of the settings.
    """
    known = {name: each for kind in kinds for name, each in fields_of(kind).items()}
    default_of = {field.name: field for kind in kinds for field in dataclasses.fields(kind)}

    def add(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        *before, last = own.parameters.values()
        if last.kind is not inspect.Parameter.VAR_KEYWORD:
            raise TypeError(f"{command.__name__} takes no settings")
        asked = {name: each for name, each in known.items() if each[1].help and name not in without}
        names = {n: o for kind in kinds for n, o in options_by_name(kind).items() if n in asked}
        places = [_parameter(names[name], *asked[name], None, place=True) for name in arguments]
        options = [
            _parameter(names[name], kind, about, defaults.get(name, _default(default_of[name])))
            for name, (kind, about) in asked.items()
            if name not in arguments
        ]
        given = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in before]
        parameters = [*places, *given, *options]
        # by its needs first: what has no default
        parameters.sort(key=lambda each: each.default is not each.empty)

        @functools.wraps(command)
        def run(**values: Any) -> None:
            for name, option in names.items():
                values[name] = _taken(*asked[name], default_of[name], values.pop(option))
            command(**values)

        run.__signature__ = own.replace(parameters=parameters)  # pyright: ignore
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run  # pyright: ignore

    return add


def options_by_name(kind: type[Settings]) -> dict[str, str]:
    """The option of each setting, without its dashes."""
    return {name: about.option or name for name, (_, about) in fields_of(kind).items()}


def of_kind(kind: type[Settings], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's settings that are `kind`'s."""
    return {name: value for name, value in settings.items() if name in fields_of(kind)}


def _parameter(
    name: str, kind: Any, about: About, default: Any, *, place: bool = False
) -> inspect.Parameter:
    words = typer.Argument if place else typer.Option
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if place or default is MISSING else default,
        annotation=Annotated[_plain(kind, needed=place), words(help=_help(kind, about))],
    )


def _help(kind: Any, about: About) -> str:
    choices = choices_of(kind)
    return f"{about.help} Choices: {', '.join(choices)}." if choices else about.help


def _default(field: dataclasses.Field[Any]) -> Any:
    return list(field.default) if isinstance(field.default, tuple) else field.default  # pyright: ignore


def _taken(kind: Any, about: About, field: dataclasses.Field[Any], value: Any) -> Any:
    """What the command line read, as the settings have it: a 0 that no range holds means None."""
    if isinstance(value, list):
        return tuple(value)  # pyright: ignore
    none = type(None) in get_args(kind) and field.default is not None
    return None if none and value == 0 and not about.holds(0) else value


def _plain(kind: Any, *, needed: bool = False) -> Any:
    """The type that the command line reads; a choice is text, which the settings check."""
    if get_origin(kind) in (Union, types.UnionType):
        (one,) = (_plain(each) for each in get_args(kind) if each is not type(None))
        return one if needed else one | None
    if choices_of(kind):
        return str
    if get_origin(kind) is tuple:
        return list[_plain(get_args(kind)[0])]
    if kind in (bool, int, float, str, Path):
        return kind
    raise TypeError(f"no option can be of {get_origin(kind) or kind}")
