"""What the app lets in: only what its own page sends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from composer.studio import Studio
from composer.ui.actions import Actions
from composer.ui.app import build
from composer.ui.layout import lay_out


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """A studio that was never started: no model is loaded."""
    return Studio(tmp_path / "model", [], tmp_path / "outputs")


def test_nothing_is_public_and_no_list_takes_other_values(studio: Studio) -> None:
    config: Any = build(studio).get_config_file()
    assert {event["api_visibility"] for event in config["dependencies"]} == {"private"}
    lists = [part["props"] for part in config["components"] if part["type"] == "dropdown"]
    assert lists and not any(props["allow_custom_value"] for props in lists)


def test_a_picture_that_is_gone_is_named(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda message, **_: told.append(message))
    with gr.Blocks():
        page = lay_out()
    actions = Actions(studio, page)
    event: Any = SimpleNamespace(id="2026-01-01/0001-1.png")
    assert "is gone from" in actions.pick(event)[page.stage]["detail"]
    assert actions.use(event.id) == {} == actions.reuse_seed(event.id)
    assert len(told) == 2 and all("is gone from" in message for message in told)


def test_no_two_components_share_an_id(studio: Studio) -> None:
    config: Any = build(studio).get_config_file()
    ids = [part["props"].get("elem_id") for part in config["components"]]
    named = [name for name in ids if name]
    assert len(named) == len(set(named))
