"""What the app lets in, only what its own page sends, and that Gradio takes what it answers."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from anyio.from_thread import start_blocking_portal
from gradio.block_function import BlockFunction
from gradio.state_holder import SessionState

from composer.studio import Studio
from composer.ui.actions import Actions
from composer.ui.app import build
from composer.ui.endpoints import ENDPOINTS
from composer.ui.layout import lay_out

GONE = "2026-01-01/0001-1.png"


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """A studio that was never started: no model is loaded."""
    return Studio(tmp_path / "model", [], tmp_path / "outputs")


def test_only_the_named_endpoints_are_public_and_no_list_takes_other_values(studio: Studio) -> None:
    config: Any = build(studio).get_config_file()
    events = config["dependencies"]
    public = [event["api_name"] for event in events if event["api_visibility"] != "private"]
    assert public == list(ENDPOINTS)
    lists = [part["props"] for part in config["components"] if part["type"] == "dropdown"]
    assert lists and not any(props["allow_custom_value"] for props in lists)


def test_a_picture_that_is_gone_is_named(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda message, **_: told.append(message))
    with gr.Blocks():
        page = lay_out()
    actions = Actions(studio, page)
    event: Any = SimpleNamespace(id=GONE)
    assert "is gone from" in actions.pick(event)[page.stage]["detail"]
    actions.use(event.id)
    actions.reuse_seed(event.id)
    assert len(told) == 2 and all("is gone from" in message for message in told)


@pytest.mark.filterwarnings("ignore::UserWarning")  # a note to the user, where no page is open
def test_gradio_takes_every_answer_where_nothing_is_there(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("model", "outputs", "words")]
    studio = Studio(folders[0], [], folders[1], language_model=folders[2])
    assert studio.wait(120).state == "failed"
    blocks = build(studio)
    ours = (handler for handler in blocks.fns.values() if handler.api_visibility == "private")
    handlers = [handler for handler in ours if handler.fn is not None]
    names = {handler.name for handler in handlers}
    assert {"use", "reuse_seed", "fill", "pick", "remake", "restore"} <= names
    parts: Any = blocks.get_config_file()["components"]
    values = {part["id"]: part["props"].get("value") for part in parts}
    refused: dict[tuple[str | None, str | None], str] = {}
    # In a thread of its own: this one may hold the loop of a browser that an earlier test opened.
    with start_blocking_portal() as portal:
        for current, handler in product((None, GONE), handlers):
            try:
                portal.call(run, blocks, handler, values, current)
            except Exception as error:
                refused[current, handler.name] = f"{type(error).__name__}: {error}"
    assert not refused


async def run(
    blocks: gr.Blocks, handler: BlockFunction, values: dict[int, Any], current: str | None
) -> None:
    """Let Gradio run a handler to its end, on pages as they open but for the picture shown."""
    state = SessionState(blocks)
    (shown,) = next(known.inputs for known in blocks.fns.values() if known.name == "use")
    state[shown._id] = current
    called: Any = {
        "block_fn": handler,
        "inputs": [sent(part, values) for part in handler.inputs],
        "state": state,
        "request": gr.Request(session_hash="ann"),
        "event_data": gr.EventData(None, {"id": "gates:gone", "name": "gone", "unit": "gone"}),
    }
    answer = await blocks.process_api(**called)
    while answer["is_generating"]:
        answer = await blocks.process_api(**called, iterator=answer["iterator"])


def sent(part: Any, values: dict[int, Any]) -> Any:
    """What a browser sends of a component that nobody has touched."""
    value = values[part._id]
    return "" if value is None and isinstance(part, gr.Textbox) else value


def test_no_two_components_share_an_id(studio: Studio) -> None:
    config: Any = build(studio).get_config_file()
    ids = [part["props"].get("elem_id") for part in config["components"]]
    named = [name for name in ids if name]
    assert len(named) == len(set(named))
