"""What stands where on the page that compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from composer.diffusion.samplers import SAMPLERS, SCHEDULES
from composer.ui.compare_views import ways_view
from composer.ui.layout import USUAL_CFG, component

ROOM = "compare:"  # before the names of the events between this page's components
SETTINGS = (
    "negative", "steps", "cfg_scale", "sampler", "schedule", "width", "height", "clip_skip", "seed",
)  # fmt: skip
ENCODERS = ("clip", "dino")


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparePage:
    """The components of the page that actions read or write."""

    prompt: gr.Textbox
    compare: gr.Button
    stop: gr.Button
    take: gr.Button
    picker: gr.HTML
    mixer: gr.HTML
    check: gr.Button
    conflicts: gr.HTML
    ways: gr.HTML
    negative: gr.Textbox
    steps: gr.Number
    cfg_scale: gr.Number
    sampler: gr.Dropdown
    schedule: gr.Dropdown
    width: gr.Number
    height: gr.Number
    clip_skip: gr.Number
    seed: gr.Textbox
    clip: gr.Textbox
    dino: gr.Textbox
    pace: gr.HTML
    comparison: gr.HTML

    @property
    def form(self) -> dict[str, Any]:
        """The fields that make a comparison, by name, in the order in which values come."""
        names = ("mixer", "ways", "prompt", *SETTINGS, *ENCODERS)
        return {name: getattr(self, name) for name in names}

    @property
    def taken(self) -> list[Any]:
        """What is taken over from Compose."""
        return [field for name, field in self.form.items() if name not in ("ways", *ENCODERS)]


def lay_out() -> ComparePage:
    """Make the components, inside the tab that is open."""
    parts: dict[str, Any] = {}
    with gr.Row(elem_id="bench"):
        with gr.Column(elem_id="bench-form"):
            parts |= _prompt()
            with gr.Column(elem_id="compare-loras", elem_classes="sheet"):
                parts["picker"] = component(
                    "picker",
                    {"cards": [], "title": "LoRAs to compare"},
                    elem_id="compare-picker",
                    room=ROOM,
                )
                parts["mixer"] = component("mixer", [], elem_id="compare-mixer", room=ROOM)
                parts["check"] = gr.Button(
                    "Check for conflicts", size="sm", elem_id="compare-check"
                )
                parts["conflicts"] = component("conflicts", None, elem_id="compare-conflicts")
            with gr.Column(elem_id="compare-ways-sheet", elem_classes="sheet"):
                parts["ways"] = component("ways", ways_view(), elem_id="compare-ways", room=ROOM)
                with gr.Accordion("Settings", open=False, elem_id="compare-settings"):
                    parts |= _settings()
        with (
            gr.Column(elem_id="bench-result"),
            gr.Column(elem_id="compare-sheet", elem_classes="sheet"),
        ):
            parts["pace"] = component("pace", {"phase": "idle"}, elem_id="pace", room=ROOM)
            parts["comparison"] = component("comparison", None, elem_id="comparison", room=ROOM)
    return ComparePage(**parts)


def _prompt() -> dict[str, Any]:
    with gr.Column(elem_id="compare-prompt-sheet", elem_classes="sheet"):
        prompt = gr.Textbox(
            label="Prompt",
            placeholder="One prompt for all ways. Without it there is little to compare.",
            lines=2,
            max_lines=6,
            elem_id="compare-prompt",
        )
        with gr.Row(elem_id="compare-run"):
            compare = gr.Button("Compare", variant="primary", elem_id="compare-start")
            stop = gr.Button("Stop", elem_id="compare-stop", interactive=False)
        take = gr.Button("Take over from Compose", size="sm", elem_id="compare-take")
    return {"prompt": prompt, "compare": compare, "stop": stop, "take": take}


def _settings() -> dict[str, Any]:
    negative = gr.Textbox(label="Negative prompt", lines=1, max_lines=4, elem_id="compare-negative")
    with gr.Row(elem_classes="numbers"):
        numbers = {
            "steps": gr.Number(20, label="Steps", precision=0, elem_id="compare-steps"),
            "cfg_scale": gr.Number(USUAL_CFG, label="CFG scale", step=0.5, elem_id="compare-cfg"),
            "sampler": gr.Dropdown(list(SAMPLERS), label="Sampler", elem_id="compare-sampler"),
            "schedule": gr.Dropdown(list(SCHEDULES), label="Schedule", elem_id="compare-schedule"),
            "width": gr.Number(None, label="Width", precision=0, elem_id="compare-width"),
            "height": gr.Number(None, label="Height", precision=0, elem_id="compare-height"),
            "clip_skip": gr.Number(1, label="Clip skip", precision=0, elem_id="compare-clip-skip"),
            "seed": gr.Textbox(
                "0", label="First seed (-1: any)", max_lines=1, elem_id="compare-seed"
            ),
        }
    encoders = {
        "clip": gr.Textbox(
            label="CLIP that scores (optional)",
            info="For CLIP-T, which does not agree with people on composition, and CLIP-I.",
            placeholder="Folder or hub name",
            max_lines=1,
            elem_id="compare-clip",
        ),
        "dino": gr.Textbox(
            label="DINO that scores (optional)",
            info="As CLIP-I: how like a picture is to those that each LoRA makes alone.",
            placeholder="Folder or hub name",
            max_lines=1,
            elem_id="compare-dino",
        ),
    }
    return {"negative": negative, **numbers, **encoders}
