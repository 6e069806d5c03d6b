"""What stands where on the first page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from composer.diffusion.samplers import SAMPLERS, SCHEDULES
from composer.fusions import PLAIN
from composer.ui.theme import static

EXAMPLES = 4
GATE_EXAMPLES = 2
USUAL_CFG = 3.0
"""The CFG scale where nothing else is said."""

PARAMETERS = 3
"""Of one fusion at most, that are numbers; and one choice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """The components of the first page that actions read or write."""

    masthead: gr.HTML
    library: gr.HTML
    triggers: gr.Checkbox
    mixer: gr.HTML
    gates: gr.HTML
    fusion: gr.Dropdown
    parameters: tuple[gr.Component, ...]  # of the fusion: numbers, then a choice
    places: gr.HTML
    pinning: gr.Accordion
    pins: gr.Textbox
    prompt: gr.Textbox
    expander: gr.HTML
    negative: gr.Textbox
    generate: gr.Button
    stop: gr.Button
    gate_examples: tuple[gr.Button, ...]
    examples: tuple[gr.Button, ...]
    steps: gr.Number
    cfg_scale: gr.Number
    sampler: gr.Dropdown
    schedule: gr.Dropdown
    count: gr.Number
    width: gr.Number
    height: gr.Number
    clip_skip: gr.Number
    hires: gr.Number
    strength: gr.Number
    starting: gr.Accordion
    start: gr.ImageEditor
    seed: gr.Textbox
    new_seed: gr.Checkbox
    stage: gr.HTML
    recipe: gr.HTML
    actions: gr.Row
    use: gr.Button
    same_seed: gr.Button
    begin: gr.Button
    other_way: gr.Button
    download: gr.HTML
    gate_map: gr.HTML
    strip: gr.HTML
    restore: gr.File
    current: gr.State  # the id of the picture that is shown
    proposal: gr.JSON  # an example for a form still untouched

    @property
    def form(self) -> dict[str, Any]:
        """The fields that make a request, by name, in the order in which values come."""
        names = (
            "mixer", "fusion", "pins", "prompt", "negative", "steps", "cfg_scale", "sampler",
            "schedule", "count", "width", "height", "clip_skip", "hires", "strength", "start",
            "seed", "new_seed",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def filled(self) -> list[Any]:
        """What an example fills in."""
        return [self.mixer, self.fusion, self.prompt, self.pins]

    @property
    def shown(self) -> list[Any]:
        """What changes when another picture is shown."""
        return [
            self.stage, self.recipe, self.actions, self.other_way, self.download, self.gate_map,
            self.current,
        ]  # fmt: skip


def brush_for(side: int) -> gr.Brush:
    """What paints the mask of a picture of so many pixels: what it covers can still be seen."""
    colour = "rgba(0, 220, 130, 0.6)"
    return gr.Brush(
        default_size=max(side // 10, 1),
        colors=[colour],
        default_color=colour,
        color_mode="fixed",
    )


def component(name: str, value: object, **options: Any) -> gr.HTML:
    """A component of our own: `static/<name>.html` with the scripts `parts.js` and `<name>.js`.

    Its markup never changes and its script puts values in as text. (Gradio's templates would run
    what stands between `${` and `}` in a value as a program.)
    """
    return gr.HTML(
        value=value,
        html_template=static(f"{name}.html"),
        js_on_load=static("parts.js") + static(f"{name}.js"),
        apply_default_css=False,
        **options,
    )


def head() -> gr.HTML:
    """The head of all pages."""
    return component("masthead", {"state": "loading"}, elem_id="masthead")


def lay_out(masthead: gr.HTML | None = None) -> Page:
    """Make the components, inside the Blocks that are open; the head only if there is none yet."""
    parts: dict[str, Any] = {"current": gr.State(None), "proposal": gr.JSON(visible="hidden")}
    parts["masthead"] = head() if masthead is None else masthead
    with gr.Row(elem_id="desk"):
        with gr.Column(elem_id="cards"):
            parts |= _cards()
        with gr.Column(elem_id="controls"):
            parts |= _prompt()
            parts |= _mixture()
            parts |= _settings()
        with gr.Column(elem_id="result"):
            parts |= _result()
    return Page(**parts)


def _cards() -> dict[str, Any]:
    with gr.Column(elem_id="library-sheet", elem_classes="sheet"):
        library = component("library", {"cards": [], "problems": [], "loading": True})
        triggers = gr.Checkbox(
            True, label="Add trigger words to the prompt", container=False, elem_id="triggers"
        )
    return {"library": library, "triggers": triggers}


def _prompt() -> dict[str, Any]:
    with gr.Column(elem_id="prompt-sheet", elem_classes="sheet"):
        prompt = gr.Textbox(
            label="Prompt",
            placeholder="What to paint. LoRAs can be named here too: <lora:name:0.8>",
            lines=3,
            max_lines=8,
            elem_id="prompt",
        )
        expander = component("expander", {"phase": "idle"}, elem_id="expander")
        negative = gr.Textbox(
            label="Negative prompt",
            placeholder="What to keep out (optional)",
            lines=1,
            max_lines=4,
            elem_id="negative",
        )
        with gr.Row(elem_id="run"):
            generate = gr.Button("Generate", variant="primary", elem_id="generate")
            stop = gr.Button("Stop", elem_id="stop", interactive=False)
        with gr.Row(elem_id="examples"):
            gate_examples = tuple(
                gr.Button(visible=False, size="sm", elem_classes="with-gates")
                for _ in range(GATE_EXAMPLES)
            )
            examples = tuple(gr.Button(visible=False, size="sm") for _ in range(EXAMPLES))
    return {
        "prompt": prompt,
        "expander": expander,
        "negative": negative,
        "generate": generate,
        "stop": stop,
        "gate_examples": gate_examples,
        "examples": examples,
    }


def _mixture() -> dict[str, Any]:
    with gr.Column(elem_id="mixture-sheet", elem_classes="sheet"):
        mixer = component("mixer", [], elem_id="mixer")
        gates = component("gates", {"offers": [], "chosen": None}, elem_id="gates")
        fusion = gr.Dropdown(
            [(recipe.title, recipe.key) for recipe in PLAIN],
            label="How they are fused",
            info=PLAIN[0].description,
            elem_id="fusion",
        )
        with gr.Row(elem_classes="numbers", elem_id="fusion-parameters"):
            numbers = [gr.Number(visible=False, min_width=90) for _ in range(PARAMETERS)]
            parameters = (*numbers, gr.Dropdown(visible=False, min_width=90))
        places = component("places", {"shown": False}, elem_id="places")
        with gr.Accordion("Pin units by hand", open=False, elem_id="pinning") as pinning:
            pins = gr.Textbox(
                show_label=False,
                container=False,
                placeholder="mid_block.attentions.0: zibo=1, neon=0.5\nup_blocks.*: zibo=1, neon=0",
                info="Weights that hold in a unit whatever the gates give there, one line each; a "
                "LoRA that is not named has weight 0. The numbers over a gate map add a line.",
                lines=2,
                max_lines=8,
                elem_id="pins",
            )
    return {
        "mixer": mixer,
        "gates": gates,
        "fusion": fusion,
        "parameters": parameters,
        "places": places,
        "pinning": pinning,
        "pins": pins,
    }


def _settings() -> dict[str, Any]:
    with gr.Column(elem_id="settings-sheet", elem_classes="sheet"):
        gr.HTML('<div class="head"><h2>Settings</h2></div>', apply_default_css=False)
        with gr.Row(elem_classes="numbers"):
            steps = gr.Number(20, label="Steps", precision=0, elem_id="steps")
            cfg_scale = gr.Number(USUAL_CFG, label="CFG scale", step=0.5, elem_id="cfg")
            sampler = gr.Dropdown(list(SAMPLERS), label="Sampler", elem_id="sampler")
            schedule = gr.Dropdown(list(SCHEDULES), label="Schedule", elem_id="schedule")
            width = gr.Number(None, label="Width", precision=0, elem_id="width")
            height = gr.Number(None, label="Height", precision=0, elem_id="height")
            count = gr.Number(1, label="Pictures", precision=0, elem_id="count")
            clip_skip = gr.Number(1, label="Clip skip", precision=0, elem_id="clip-skip")
            hires = gr.Number(1.0, label="Second pass ×", step=0.25, elem_id="hires")
            strength = gr.Number(0.7, label="Denoising", step=0.05, elem_id="strength")
            # text, for a browser's numbers have 53 bits and seeds up to 64
            seed = gr.Textbox("0", label="Seed", max_lines=1, elem_id="seed")
            new_seed = gr.Checkbox(True, label="New each time", elem_id="new-seed")
        with gr.Accordion("Begin from a picture", open=False, elem_id="starting") as starting:
            gr.HTML(
                "<p>Denoising says how much of it is drawn anew: 0.3 a little, 0.8 nearly all. "
                "Paint over a part, and the rest stays as it is.</p>",
                apply_default_css=False,
            )
            start = gr.ImageEditor(
                show_label=False,
                type="pil",
                sources=("upload", "clipboard"),
                transforms=(),
                layers=False,
                brush=brush_for(512),
                height=300,
                elem_id="start",
            )
    return {
        "steps": steps,
        "cfg_scale": cfg_scale,
        "sampler": sampler,
        "schedule": schedule,
        "width": width,
        "height": height,
        "count": count,
        "clip_skip": clip_skip,
        "hires": hires,
        "strength": strength,
        "starting": starting,
        "start": start,
        "seed": seed,
        "new_seed": new_seed,
    }


def _result() -> dict[str, Any]:
    with gr.Column(elem_id="result-sheet", elem_classes="sheet"):
        stage = component("stage", {"phase": "idle"}, elem_id="stage")
        recipe = gr.HTML(visible=False, apply_default_css=False, elem_id="recipe")
        with gr.Row(elem_id="actions", visible=False) as actions:
            use = gr.Button("Use these settings", elem_id="use")
            same_seed = gr.Button("Reuse its seed", elem_id="same-seed")
            begin = gr.Button("Begin from it", elem_id="begin-from")
            other_way = gr.Button(visible=False, elem_id="other-way")
            download = gr.HTML(apply_default_css=False, elem_id="download")
        gate_map = component("gatemap", None, elem_id="gate-map")
    with gr.Column(elem_id="strip-sheet", elem_classes="sheet"):
        strip = component("strip", {"pictures": [], "selected": None}, elem_id="strip")
        restore = gr.File(
            label="Drop a picture here to get its settings back",
            file_types=[".png", ".jpg", ".jpeg", ".webp"],
            type="filepath",
            height=84,
            elem_id="restore",
        )
    return {
        "stage": stage,
        "recipe": recipe,
        "actions": actions,
        "use": use,
        "same_seed": same_seed,
        "begin": begin,
        "other_way": other_way,
        "gate_map": gate_map,
        "download": download,
        "strip": strip,
        "restore": restore,
    }
