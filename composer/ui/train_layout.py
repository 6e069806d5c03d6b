"""What stands where on the page that trains gates."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from composer.studio import TrainingRequest
from composer.ui.layout import component

INVITATION: dict[str, Any] = {"state": "none"}
DEFAULT: dict[str, Any] = {field.name: field.default for field in fields(TrainingRequest)}
HINT = (
    '<p class="hint">120 steps are plenty for two LoRAs of the shipped model: about three minutes '
    "on two processor cores. It goes on when you close the page.</p>"
)
PUBLISHED: dict[str, Any] = {"paper": True, "input": "hidden"}
"""The paper's gates, where they differ from ours."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainPage:
    """The components of the page that actions read or write."""

    picker: gr.HTML
    lessons: gr.HTML
    name: gr.Textbox
    start: gr.Button
    problem: gr.HTML
    settings: dict[str, Any]
    recommended: gr.Button
    published: gr.Button
    live: gr.HTML
    stop: gr.Button
    resume: gr.Button
    previews: gr.HTML
    trainings: gr.HTML
    timer: gr.Timer
    suggested: gr.State  # the name that was filled in, until somebody writes another
    shown: gr.State  # the name of the training that is shown; None: the one that runs
    sent: gr.State  # what this page was sent last, so that only changes are sent

    @property
    def form(self) -> list[Any]:
        """The fields that make a request, in the order in which values come."""
        return [self.name, self.lessons, *self.settings.values()]

    @property
    def news(self) -> list[Any]:
        """What changes while a training runs."""
        parts = (self.live, self.stop, self.resume, self.previews, self.trainings)
        return [*parts, self.sent, self.shown]


def lay_out() -> TrainPage:
    """Make the components, inside the tab that is open."""
    parts: dict[str, Any] = {
        "suggested": gr.State(""),
        "shown": gr.State(None),
        "sent": gr.State(None),
        "timer": gr.Timer(1.0),  # always: one that is switched off can miss the last news
    }
    with gr.Row(elem_id="school"):
        with gr.Column(elem_id="pupils"), gr.Column(elem_id="picker-sheet", elem_classes="sheet"):
            parts["picker"] = component("picker", {"cards": []}, elem_id="picker")
        with gr.Column(elem_id="plan"):
            with gr.Column(elem_id="lessons-sheet", elem_classes="sheet"):
                parts["lessons"] = component("lessons", None, elem_id="lessons")
            parts |= _begin()
        with gr.Column(elem_id="report"):
            with gr.Column(elem_id="live-sheet", elem_classes="sheet"):
                parts["live"] = component("training", INVITATION, elem_id="live")
                with gr.Row(elem_id="live-run"):
                    parts["stop"] = gr.Button("Stop", elem_id="train-stop", visible=False)
                    parts["resume"] = gr.Button("Continue", elem_id="train-resume", visible=False)
                parts["previews"] = component("previews", {"pictures": []}, elem_id="previews")
            with gr.Column(elem_id="trainings-sheet", elem_classes="sheet"):
                parts["trainings"] = component("trainings", {"rows": []}, elem_id="trainings")
    return TrainPage(**parts)


def _begin() -> dict[str, Any]:
    with gr.Column(elem_id="begin-sheet", elem_classes="sheet"):
        with gr.Row(elem_id="begin"):
            name = gr.Textbox(
                label="Name of the result", placeholder="my_gates", max_lines=1, elem_id="gate-name"
            )
            steps = _number("steps", "Steps", 0)
        start = gr.Button("Start training", variant="primary", elem_id="train-start")
        gr.HTML(HINT, apply_default_css=False, elem_id="train-hint")
        problem = gr.HTML(visible=False, apply_default_css=False, elem_id="train-problem")
        with gr.Accordion("Advanced", open=False, elem_id="train-advanced"):
            with gr.Row(elem_id="presets"):
                recommended = gr.Button("Recommended", size="sm")
                published = gr.Button("As in the paper", size="sm")
            settings = _advanced()
    return {
        "name": name,
        "start": start,
        "problem": problem,
        "settings": {"steps": steps, **settings},
        "recommended": recommended,
        "published": published,
    }


def _advanced() -> dict[str, Any]:
    with gr.Row(elem_classes="fields"):
        choices = {
            "granularity": _choice(
                "granularity",
                "One gate for each",
                {"block": "block", "layer": "layer", "matrix": "matrix", "network": "network"},
                "Finer gates know more and cost more",
            ),
            "input": _choice(
                "input",
                "A gate looks at",
                {
                    "auto": "what suits these LoRAs",
                    "hidden": "what comes in",
                    "placed": "what comes in, and where words act",
                    "experts": "what the LoRAs change",
                },
                "Where words act is slower; changes are for the paper's gates alone",
            ),
            "company": _choice(
                "company",
                "Beside whom each LoRA judges",
                {"fitting": "all that fit", "nobody": "nobody"},
                "Two figures do not fit: their sum blends them",
            ),
            "clip": gr.Textbox(
                DEFAULT["clip"],
                label="Which CLIP judges the paper's",
                info="A folder or hub name",
                placeholder="the model's own",
                max_lines=1,
                elem_id=_id("clip"),
                min_width=80,
            ),
            "precision": _choice(
                "precision",
                "The model runs in",
                {"float32": "float32", "bfloat16": "bfloat16"},
                "bfloat16 is faster where the processor knows it",
            ),
        }
        numbers = {
            "depth": _number("depth", "From this depth on", info="0 is the whole U-Net"),
            "learning_rate": _number("learning_rate", "Learning rate"),
            "batch_size": _number("batch_size", "Rows at once", 0),
            "seed": _number("seed", "Seed", 0),
        }
    with gr.Row(elem_classes="switches"):
        switches = {
            "paper": _switch("paper", "As in the paper, judged by CLIP"),
            "gradient_checkpointing": _switch("gradient_checkpointing", "Less memory, slower"),
        }
    return {**choices, **numbers, **switches}


def _id(name: str) -> str:
    return f"train-set-{name.replace('_', '-')}"


def _number(name: str, label: str, precision: int | None = None, info: str | None = None) -> Any:
    return gr.Number(
        DEFAULT[name], label=label, precision=precision, info=info, elem_id=_id(name), min_width=80
    )


def _choice(name: str, label: str, choices: dict[str, str], info: str) -> Any:
    return gr.Dropdown(
        [(words, value) for value, words in choices.items()],
        value=DEFAULT[name],
        label=label,
        info=info,
        elem_id=_id(name),
        min_width=80,
    )


def _switch(name: str, label: str) -> Any:
    return gr.Checkbox(DEFAULT[name], label=label, container=False, elem_id=_id(name))
