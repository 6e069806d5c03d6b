"""The options of `app.py`, and what it says when the page cannot be served."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import app


@pytest.mark.parametrize(
    ("words", "host"),
    [
        ([], "127.0.0.1"),
        (["--host", "0.0.0.0"], "0.0.0.0"),
        (["--listen"], "0.0.0.0"),
        (["--listen", "10.0.0.2"], "10.0.0.2"),
        (["--server-name", "10.0.0.2"], "10.0.0.2"),
    ],
)
def test_the_words_of_other_programs_are_understood(words: list[str], host: str) -> None:
    assert app.parser().parse_args(words).host == host


def test_a_taken_port_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: Any, **__: Any) -> None:
        raise OSError("Cannot find empty port in range: 7861-7861. You can set it.")

    monkeypatch.setattr("composer.ui.app.launch", taken)
    monkeypatch.setattr(sys, "argv", ["app.py", "--port", "7861"])
    with pytest.raises(SystemExit, match=r"127\.0\.0\.1:7861 .*empty port.*another --port"):
        app.main()


def test_tools_without_their_package_are_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["app.py", "--mcp"])
    with pytest.raises(SystemExit, match=r"--mcp needs the package mcp.*pip install"):
        app.main()


def test_a_password_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", "--auth", "secret"])
    with pytest.raises(SystemExit, match="NAME:PASSWORD"):
        app.main()
