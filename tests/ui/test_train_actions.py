"""The actions of the page that trains gates, on a studio whose model cannot be loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from tiny_loras import write_lora

from composer.studio import Studio
from composer.ui import train_views as views
from composer.ui.train_actions import TrainActions
from composer.ui.train_layout import TrainPage, lay_out


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    folder = tmp_path / "loras"
    zibo = {"composer.role": "character", "modelspec.trigger_phrase": "zibo fox"}
    neon = {"composer.role": "style", "modelspec.trigger_phrase": "in neon style"}
    write_lora(folder / "zibo.safetensors", seed=1, **zibo)
    write_lora(folder / "neon.safetensors", seed=2, **neon)
    write_lora(folder / "mute.safetensors", seed=3)
    return Studio(tmp_path / "no model", [folder], tmp_path / "outputs")


@pytest.fixture
def page() -> TrainPage:
    with gr.Blocks():
        return lay_out()


def prompts(studio: Studio, *names: str) -> views.Json:
    return views.no_prompts([views.lora_line(studio.card(name)) for name in names])


def words(update: Any) -> str:
    return str(update["value"])


def test_the_page_opens_with_a_pair_and_its_prompts(studio: Studio, page: TrainPage) -> None:
    update = TrainActions(studio, page).open(None, None)
    assert {card["name"] for card in update[page.picker]["cards"]} == {"zibo", "neon", "mute"}
    assert [one["name"] for one in update[page.prompts]["loras"]] == ["zibo", "neon"]
    assert "zibo fox" in update[page.prompts]["together"]["text"]
    assert update[page.name] == update[page.suggested] == "zibo_neon"
    assert update[page.live] == {"state": "none"}
    again = TrainActions(studio, page).open(update[page.prompts], None)
    assert page.prompts not in again  # what is there is the user's own


def test_a_missing_folder_is_told_and_the_page_opens(tmp_path: Path, page: TrainPage) -> None:
    studio = Studio(tmp_path / "model", [tmp_path / "nowhere"], tmp_path / "outputs")
    update = TrainActions(studio, page).open(None, None)
    assert update[page.picker] == {"cards": []}
    assert "nowhere" in words(update[page.problem])


def test_a_lora_without_trigger_words_is_told(studio: Studio, page: TrainPage) -> None:
    actions = TrainActions(studio, page)
    asked = prompts(studio, "zibo", "mute")
    update = actions.draft(asked, "mine", "zibo_neon")
    assert "&#x27;mute&#x27; names no trigger" in words(update[page.problem])
    assert page.name not in update  # a name somebody wrote is kept
    asked["loras"][1]["trigger"] = "mumble"
    update = actions.draft(asked, "zibo_neon", "zibo_neon")
    assert update[page.problem]["visible"] is False
    assert "mumble" in update[page.prompts]["together"]["text"]
    assert update[page.name] == "zibo_mute"
    assert "Reload the page" in words(actions.draft("nonsense", "", "")[page.problem])


def test_what_is_wrong_is_told_in_place(studio: Studio, page: TrainPage) -> None:
    actions = TrainActions(studio, page)
    values = [actions.preset(False)[field] for field in page.settings.values()]
    update = actions.start("mine", prompts(studio, "zibo", "neon"), *values)
    assert "names all LoRAs together" in words(update[page.problem])
    assert "No LoRA is chosen" in words(actions.start("mine", None, *values)[page.problem])
    for setting, name in (("learning_rate", "Learning rate"), ("batch_size", "Rows at once")):
        place = list(page.settings).index(setting)
        empty = [*values[:place], None, *values[place + 1 :]]
        update = actions.start("mine", prompts(studio, "zibo", "neon"), *empty)
        assert f"{name} is empty: give a number" in words(update[page.problem])


def test_the_clip_that_judges_is_named_and_checked(
    studio: Studio, page: TrainPage, tmp_path: Path
) -> None:
    actions = TrainActions(studio, page)
    filled = actions.draft(prompts(studio, "zibo", "neon"), "", "")
    paper = {name: actions.preset(True)[field] for name, field in page.settings.items()}
    assert paper["paper"] is True and paper["clip"] == ""
    asked = list({**paper, "clip": f"  {tmp_path / 'none'} "}.values())
    update = actions.start("mine", filled[page.prompts], *asked)
    assert f"The CLIP {tmp_path / 'none'} cannot be used" in words(update[page.problem])
    # where the LoRAs judge, no CLIP is asked for
    asked = list({**paper, "paper": False, "clip": "none"}.values())
    update = actions.start("mine", filled[page.prompts], *asked)
    assert "asked with paper alone: give paper too" in words(update[page.problem])
    asked = list({**paper, "paper": False}.values())
    assert actions.start("mine", filled[page.prompts], *asked)[page.problem]["visible"] is False


def test_a_training_on_a_model_that_is_missing_says_so(studio: Studio, page: TrainPage) -> None:
    actions = TrainActions(studio, page)
    filled = actions.draft(prompts(studio, "zibo", "neon"), "", "")
    values = [actions.preset(False)[field] for field in page.settings.values()]
    begun = actions.start(filled[page.name], filled[page.prompts], *values)
    assert begun[page.shown] == "zibo_neon" and begun[page.problem]["visible"] is False
    last = list(studio.trainings.follow("zibo_neon"))[-1]
    assert last.state == "failed" and "no model" in last.message
    # by then it may have failed already, and `begun` have told it
    update = actions.follow("zibo_neon", None)
    assert update[page.live]["state"] == "failed"
    assert page.shown not in update  # a row may have been clicked meanwhile
    # nothing is sent twice
    assert set(actions.follow("zibo_neon", update[page.sent])) == {page.sent}
    # the timer tells what comes of stopping: an answer could overtake its last news
    assert set(actions.stop("zibo_neon")) == {page.stop}
    shown = actions.forget_row("zibo_neon", _event("zibo_neon"))
    assert shown[page.trainings]["rows"] == [] and shown[page.shown] is None


def test_a_training_that_is_gone_is_told(
    studio: Studio, page: TrainPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda message, **_: told.append(message))
    actions = TrainActions(studio, page)
    actions.resume_row(_event("gone"))
    actions.forget_row(None, _event("../gone"))
    assert len(told) == 2 and all("no training called" in message for message in told)


def _event(name: str) -> Any:
    return SimpleNamespace(name=name)
