"""The `composer` command: it gathers what `composer.commands` holds and words the errors."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from composer import commands
from composer.errors import ComposerError


class Commands(TyperGroup):
    """A group of commands that tells the user's errors in one line, with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except ComposerError as error:
            typer.secho(f"composer: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    name="composer",
    cls=Commands,
    help="Compose several LoRAs in one Stable Diffusion picture.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _composer() -> None:  # pyright: ignore[reportUnusedFunction]
    pass  # without it, typer would make a lone command the whole program


for _module in pkgutil.iter_modules(commands.__path__):
    if not _module.name.startswith("_"):  # what several commands share
        import_module(f"{commands.__name__}.{_module.name}").register(app)
