"""Options of a command that are made from the fields of its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner, Result

from composer.commands._settings import of_kind, with_settings
from composer.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class Common(Settings):
    output: Path = setting(help="Where.")
    seed: int = setting(0, help="Of what is drawn.")
    gamma: float | None = setting(5.0, above=0, option="min_snr", help="0 for none.")
    rate: float | None = setting(None, above=0, help="Half of the other if not given.")
    inner: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Painting(Common):
    folder: Path | None = setting(None, help="Pictures.")
    role: Literal["style", "other"] = setting("other", help="What it is.")
    words: tuple[str, ...] = setting(("to_q", "to_k"), option="word", help="Layers.")
    flip: bool = setting(False, help="Mirror.")


@dataclass(frozen=True, kw_only=True)
class Router(Settings):
    top_k: int = setting(2, at_least=1, help="How many.")
    jitter: float = setting(0.0, help="Noise.")


def run(*words: str) -> tuple[Result, dict[str, Any]]:
    seen: dict[str, Any] = {}

    @with_settings(Painting, Router, arguments=("folder",), without=("jitter",), seed=7)
    def paint(model: str = "m", **settings: Any) -> None:
        """Paint."""
        seen["model"] = model
        seen["painting"] = Painting(**of_kind(Painting, settings))
        seen["router"] = Router(**of_kind(Router, settings))

    app = typer.Typer(add_completion=False)
    app.command()(paint)
    return CliRunner().invoke(app, list(words)), seen


def test_what_is_not_given_has_the_settings_own_default_or_the_commands() -> None:
    done, seen = run("pictures", "--output", "o")
    assert done.exit_code == 0, done.output
    assert seen["model"] == "m"
    folder, output = Path("pictures"), Path("o")
    assert seen["painting"] == Painting(folder=folder, output=output, seed=7)
    assert seen["router"] == Router()


def test_what_is_given_reaches_its_field_in_its_type() -> None:
    words = "pictures --output o --role style --word a --word b --flip --min-snr 0 --rate 2"
    done, seen = run(*words.split(), "--top-k", "3", "--model", "n")
    assert done.exit_code == 0, done.output
    assert seen["painting"] == Painting(
        folder=Path("pictures"),
        output=Path("o"),
        seed=7,
        role="style",
        words=("a", "b"),
        flip=True,
        gamma=None,
        rate=2.0,
    )
    assert seen["router"] == Router(top_k=3)
    assert seen["model"] == "n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("pictures --output o --role nobody", "role"),
        ("pictures --output o --rate 0", "rate is 0"),
        ("pictures --output o --min-snr -1", "gamma is -1"),
        ("pictures --output o --top-k 0", "top_k is 0"),
    ],
)
def test_the_settings_refuse_what_they_would_refuse_elsewhere(words: str, told: str) -> None:
    done, _ = run(*words.split())
    assert told in str(done.exception)


@pytest.mark.parametrize("words", ["--output o", "pictures", "pictures --output o --inner 3"])
def test_what_is_needed_or_unknown_is_said_by_the_command_line(words: str) -> None:
    assert run(*words.split())[0].exit_code == 2


def test_help_has_what_is_needed_first_then_a_class_own_fields_and_names_choices() -> None:
    output = run("--help")[0].output
    assert output.index("--output") < output.index("--role") < output.index("--seed")
    assert "style, other" in output
    assert "--jitter" not in output
