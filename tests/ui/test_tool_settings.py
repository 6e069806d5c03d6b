"""A LoRA for few steps that is chosen on the page sets how pictures are sampled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from tiny_loras import write_lora

from composer.studio import Studio
from composer.ui.actions import Actions
from composer.ui.layout import lay_out


def test_its_settings_are_set_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sdxl_lightning_4step_lora", "zibo"):
        write_lora(tmp_path / "loras" / f"{name}.safetensors", seed=0)
    told: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda message, **_: told.append(message))
    with gr.Blocks():
        page = lay_out()
    actions = Actions(Studio(tmp_path, [tmp_path / "loras"], tmp_path), page)
    event: Any = SimpleNamespace(name="sdxl_lightning_4step_lora")
    assert actions.take_settings(event) == {
        page.steps: 4,
        page.cfg_scale: 1.0,
        page.sampler: "Euler",
        page.schedule: "SGM Uniform",
    }
    assert told == [
        "sdxl_lightning_4step_lora is for few steps: 4 steps, CFG 1, Euler with the schedule SGM "
        "Uniform are set."
    ]
    event = SimpleNamespace(name="zibo")
    assert actions.take_settings(event) == gr.skip() and len(told) == 1
