"""MixLoRAs on the first page and on Compare, without a browser."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from tiny_loras import write_lora
from tiny_mixlora import tiny_mixlora, write_mixlora

from composer.fusions import LoraRow, MixLora, Sum
from composer.studio import Studio
from composer.ui import views
from composer.ui.actions import Actions
from composer.ui.compare_actions import CompareActions
from composer.ui.compare_layout import lay_out as lay_out_compare
from composer.ui.layout import Page, lay_out

BOTH = "mixlora:both"
VISITOR: Any = SimpleNamespace(session_hash="ann")


@pytest.fixture(scope="module")
def studio(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("mixed") / "loras"
    for seed, (name, trigger) in enumerate((("zibo", "zibo fox"), ("neon", "neon style"))):
        told = {"modelspec.trigger_phrase": trigger, "modelspec.title": name.title()}
        write_lora(folder / f"{name}.safetensors", seed=seed, **told)
    write_mixlora(folder / "mixlora" / "both.safetensors", tiny_mixlora(tiny_sd))
    (folder / "mixlora" / "bad.safetensors").write_bytes(b"bad")
    studio = Studio(tiny_sd, [folder], folder.parent / "outputs")
    assert studio.wait(120).state == "ready"
    return studio


@pytest.fixture
def page() -> Page:
    with gr.Blocks():
        return lay_out()


@pytest.fixture
def actions(studio: Studio, page: Page) -> Actions:
    return Actions(studio, page)


def mixer(*names: str) -> list[Any]:
    return [views.row_view(LoraRow(name=name), None, Sum()) for name in names]


def test_it_is_among_the_fusions_and_a_bad_one_among_the_problems(
    actions: Actions, page: Page
) -> None:
    update = actions.refresh("weighted")
    assert ("MixLoRA: Zibo + Tavo", BOTH) in update[page.fusion]["choices"]
    assert any("bad.safetensors" in problem for problem in update[page.library]["problems"])
    gone = actions.gates.fusion(MixLora(file="gone"))
    assert gone["choices"][-1] == ("MixLoRA: gone", "mixlora:gone")


def test_choosing_it_switches_off_the_loras_in_whose_place_it_stands(
    actions: Actions, page: Page
) -> None:
    update = actions.gates.follow(BOTH, mixer("zibo", "neon"))
    assert [line["on"] for line in update[page.mixer]] == [False, True]
    assert "zibo fox, tavo robot" in update[page.fusion]["info"]
    assert update[page.gates]["chosen"] is None
    assert "mixer" not in actions.gates.follow(BOTH, "rubbish")


def test_a_lora_that_it_knows_brings_weights_back(
    actions: Actions, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda message, **_: told.append(message))
    zibo, neon = SimpleNamespace(name="zibo"), SimpleNamespace(name="neon")
    assert actions.gates.grown(BOTH, zibo)["value"] == "weighted"  # pyright: ignore
    assert told == ["MixLoRA: Zibo + Tavo knows it already, so weights are used now."]
    assert "value" not in actions.gates.grown(BOTH, neon)  # pyright: ignore


def test_a_picture_with_it_and_its_settings_again(
    studio: Studio, actions: Actions, page: Page
) -> None:
    given = {
        "mixer": mixer("neon"), "fusion": BOTH, "prompt": "a zibo fox", "negative": "",
        "steps": 2, "cfg_scale": 2.0, "sampler": "Euler", "count": 1, "width": 16, "height": 16,
        "hires": 1, "strength": 0.7, "start": None, "clip_skip": 1,
        "seed": 5, "new_seed": False, "pins": None, "schedule": "Karras",
    }  # fmt: skip
    updates: dict[Any, Any] = {}
    for update in actions.generate(VISITOR, *(given[name] for name in page.form)):
        updates |= update
    assert updates[page.stage]["phase"] == "done", updates[page.stage]
    assert "MixLoRA: both" in updates[page.recipe]["value"]
    assert not updates[page.other_way]["visible"]
    picture = studio.history.find(updates[page.current])
    assert picture.record.fusion["mixlora"] == "both"
    restored = actions.use(picture.id)
    assert restored[page.fusion]["value"] == BOTH
    assert [line["name"] for line in restored[page.mixer]] == ["neon"]


def test_compare_knows_which_loras_it_stands_for(studio: Studio, page: Page) -> None:
    with gr.Blocks():
        other = lay_out_compare()
    update = CompareActions(studio, other, page).refresh(None)
    last = update[other.ways]["lines"][-1]
    assert last["key"] == "mixlora"
    assert last["offers"] == [{"loras": ["zibo"], "just": False, "found_by": ""}]
    assert any("bad.safetensors" in problem for problem in update[other.ways]["problems"])
