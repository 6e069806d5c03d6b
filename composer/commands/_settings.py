"""Options of a command, made from the fields of its settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

import typer

from composer.settings import About, Settings, choices_of, fields_of

Command = TypeVar("Command", bound=Callable[..., None])


def with_settings(
    kind: type[Settings], *, without: Collection[str] = (), **defaults: Any
) -> Callable[[Command], Command]:
    """Give a command, in place of its `**settings`, an option for each setting of `kind` that has a
    help text; they are checked where the settings are made.

    without: settings that are asked for otherwise.
    defaults: that differ from those of the settings.
    """
    default_of = {field.name: field.default for field in dataclasses.fields(kind)}

    def add(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        *before, last = own.parameters.values()
        if last.kind is not inspect.Parameter.VAR_KEYWORD:
            raise TypeError(f"{command.__name__} takes no settings")
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is MISSING else default,
                annotation=Annotated[_plain(of), typer.Option(help=_help(of, about))],
            )
            for name, (of, about) in fields_of(kind).items()
            if about.help and name not in without
            for default in (defaults.get(name, default_of[name]),)
        ]
        given = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in before]
        parameters = sorted([*given, *made], key=lambda each: each.default is not each.empty)
        command.__signature__ = own.replace(parameters=parameters)  # pyright: ignore
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return add


def _help(kind: Any, about: About) -> str:
    choices = choices_of(kind)
    return f"{about.help} Choices: {', '.join(choices)}." if choices else about.help


def _plain(kind: Any) -> Any:
    """The type that the command line reads; a choice is text, which the settings check."""
    if choices_of(kind):
        return str
    if kind in (bool, int, float, str, Path):
        return kind
    raise TypeError(f"no option can be of {get_origin(kind) or kind}")
