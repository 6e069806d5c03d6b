"""What stands where on the page that trains gates."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from composer.settings import choices_of, fields_of
from composer.studio import TrainingRequest
from composer.ui.layout import component

INVITATION: dict[str, Any] = {"state": "none"}
SETTINGS = {name: of for name, of in fields_of(TrainingRequest).items() if of[1].label}
"""What the page asks for beside LoRAs and prompts: the settings that have a label."""
DEFAULT: dict[str, Any] = {
    field.name: field.default for field in fields(TrainingRequest) if field.name in SETTINGS
}
ROOM = "train:"  # before the names of the events between this page's components
HINT = (
    '<p class="hint">120 steps are plenty for two LoRAs of the shipped model. The training goes on '
    "when you close the page.</p>"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainPage:
    """The components of the page that actions read or write."""

    picker: gr.HTML
    prompts: gr.HTML
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
        return [self.name, self.prompts, *self.settings.values()]

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
    with gr.Row(elem_id="train"):
        with gr.Column(elem_id="train-loras"), _sheet("picker-sheet"):
            parts["picker"] = component("picker", {"cards": []}, elem_id="picker", room=ROOM)
        with gr.Column(elem_id="train-settings"):
            with _sheet("prompts-sheet"):
                parts["prompts"] = component("prompts", None, elem_id="prompts", room=ROOM)
            parts |= _begin()
        with gr.Column(elem_id="train-progress"):
            with _sheet("live-sheet"):
                parts["live"] = component("training", INVITATION, elem_id="live")
                with gr.Row(elem_id="live-run"):
                    parts["stop"] = gr.Button("Stop", elem_id="train-stop", visible=False)
                    parts["resume"] = gr.Button("Continue", elem_id="train-resume", visible=False)
                parts["previews"] = component("previews", {"pictures": []}, elem_id="previews")
            with _sheet("trainings-sheet"):
                parts["trainings"] = component("trainings", {"rows": []}, elem_id="trainings")
    return TrainPage(**parts)


def _sheet(name: str) -> gr.Column:
    return gr.Column(elem_id=name, elem_classes="sheet")


def _begin() -> dict[str, Any]:
    with _sheet("begin-sheet"):
        with gr.Row(elem_id="begin"):
            name = gr.Textbox(
                label="Name of the result", placeholder="my_gates", max_lines=1, elem_id="gate-name"
            )
            steps = _field("steps")
        start = gr.Button("Start training", variant="primary", elem_id="train-start")
        gr.HTML(HINT, apply_default_css=False, elem_id="train-hint")
        problem = gr.HTML(visible=False, apply_default_css=False, elem_id="train-problem")
        with gr.Accordion("Advanced", open=False, elem_id="train-advanced"):
            with gr.Row(elem_id="presets"):
                recommended = gr.Button("Recommended", size="sm")
                published = gr.Button("As published", size="sm")
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
    advanced = [name for name in SETTINGS if name != "steps"]
    switches = [name for name in advanced if SETTINGS[name][0] is bool]
    with gr.Row(elem_classes="fields"):
        made = {name: _field(name) for name in advanced if name not in switches}
    with gr.Row(elem_classes="switches"):
        return made | {name: _field(name) for name in switches}


def label_of(name: str) -> str:
    """What a setting is called on the page."""
    return SETTINGS[name][1].label


def _field(name: str) -> Any:
    """The component of one setting, by its type."""
    kind, about = SETTINGS[name]
    common: dict[str, Any] = {
        "label": about.label,
        "elem_id": f"train-set-{name.replace('_', '-')}",
    }
    if kind is bool:
        return gr.Checkbox(DEFAULT[name], container=False, **common)
    common |= {"info": None if about.help.startswith(about.label) else about.help, "min_width": 80}
    if choices := choices_of(kind):
        return gr.Dropdown(list(choices), value=DEFAULT[name], **common)
    if kind is str:
        return gr.Textbox(DEFAULT[name], max_lines=1, **common)
    return gr.Number(DEFAULT[name], precision=0 if kind is int else None, **common)
