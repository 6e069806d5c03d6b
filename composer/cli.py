"""The `composer` command: it gathers what `composer.commands` holds and words the errors.

Each module there that does not begin with `_` is a command: the function of the module's own name.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from composer import commands
from composer.errors import ComposerError


class Commands(TyperGroup):
    """A group of commands that prints the user's errors in one line, with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except ComposerError as error:
            typer.secho(f"composer: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(2) from error


class LazyCommand(TyperCommand):
    """A command whose module is imported where it is run or asked for its own help, but not for
    the list of commands: models' libraries take seconds."""

    def load(self) -> TyperCommand:
        """The command itself, with its options."""
        name = str(self.name).replace("-", "_")
        alone = typer.Typer(add_completion=False)
        alone.command(self.name)(getattr(import_module(f"{commands.__name__}.{name}"), name))
        return cast(TyperCommand, get_command(alone))

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """That of the command itself, which is then what runs."""
        return self.load().make_context(*args, **extra)


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


def _help_of(module: Path) -> str:
    """The docstring of the function that is the command, without importing it."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == module.stem:
            return ast.get_docstring(node) or ""
    raise AttributeError(f"{module} has no function {module.stem}, so it is no command.")


for _module in sorted(Path(commands.__path__[0]).glob("[!_]*.py")):
    app.command(_module.stem.replace("_", "-"), cls=LazyCommand, help=_help_of(_module))(
        lambda: None
    )
