"""The first page: choose LoRAs, weigh them, say what to paint, see it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from composer.studio import Studio
from composer.ui.actions import Actions
from composer.ui.layout import lay_out

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# Small things do not wait in Gradio's queue behind pictures.
QUICK: dict[str, Any] = {**PRIVATE, "queue": False}
# Only what goes through the queue can show a note.
NOTING: dict[str, Any] = {**PRIVATE, "concurrency_limit": None}


def add(blocks: gr.Blocks, studio: Studio) -> None:
    """Add the page to the Blocks, which are open."""
    page = lay_out()
    actions = Actions(studio, page)
    form = list(page.form.values())
    blocks.load(
        actions.greet,
        outputs=[page.masthead, page.library, page.strip, *form, *page.examples],
        **NOTING,
    )
    # What our own components tell has names of ours, which Gradio's types do not know.
    library: Any = page.library
    mixer: Any = page.mixer
    strip: Any = page.strip
    library.refresh(actions.refresh, outputs=library, **QUICK)
    words = [page.prompt, page.triggers]
    mixer.added(actions.add_trigger, words, page.prompt, **QUICK)
    mixer.removed(actions.remove_trigger, words, page.prompt, **QUICK)
    page.fusion.change(actions.describe_fusion, page.fusion, page.fusion, **QUICK)
    for number, button in enumerate(page.examples):
        button.click(actions.example(number), outputs=[page.mixer, page.prompt], **QUICK)
    gr.on(  # pyright: ignore[reportUnknownMemberType]
        [page.generate.click, page.prompt.submit],
        actions.generate,
        form,
        [*page.shown, page.strip, page.seed, page.stop],
        # The studio has the queue that people see; here everybody gets in.
        **NOTING,
    )
    page.stop.click(actions.stop, outputs=page.stop, **QUICK)
    strip.pick(actions.pick, outputs=page.shown, **QUICK)
    page.use.click(actions.use, page.current, form, **NOTING)
    page.same_seed.click(actions.reuse_seed, page.current, [page.seed, page.new_seed], **NOTING)
    page.restore.upload(actions.restore, page.restore, [page.restore, *form], **NOTING)
