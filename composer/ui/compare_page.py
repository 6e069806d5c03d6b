"""The page that compares: one prompt and its seeds in several ways, side by side."""

from __future__ import annotations

from typing import Any

import gradio as gr

from composer.studio import Studio
from composer.ui.compare_actions import CompareActions
from composer.ui.compare_layout import lay_out
from composer.ui.compose_page import NOTING, QUICK
from composer.ui.layout import Page


def add(tab: gr.Tab, studio: Studio, compose: Page) -> None:
    """Add the page to its tab, which is open. It is filled when somebody opens the tab.

    compose: the first page, from which settings are taken over.
    """
    page = lay_out()
    actions = CompareActions(studio, page, compose)
    composed = list(compose.form.values())
    choice = [page.picker, page.ways]
    # The events of our own components have names of ours, which Gradio's types do not know.
    picker: Any = page.picker
    mixer: Any = page.mixer
    tab.select(
        actions.open,
        [page.mixer, page.prompt, page.ways, *composed],
        [*choice, *page.taken],
        **NOTING,
    )
    picker.refresh(actions.refresh, page.ways, choice, **QUICK)
    mixer.added(actions.add_trigger, page.prompt, page.prompt, **QUICK)
    mixer.removed(actions.remove_trigger, page.prompt, page.prompt, **QUICK)
    page.take.click(actions.take, composed, page.taken, **NOTING)
    gr.on(  # pyright: ignore[reportUnknownMemberType]
        [page.compare.click, page.prompt.submit],
        actions.compare,
        list(page.form.values()),
        [page.pace, page.comparison, page.stop],
        # The studio has the queue that people see; here everybody gets in.
        **NOTING,
    )
    page.check.click(
        actions.check,
        [page.mixer, page.prompt],
        [page.conflicts, page.check, page.stop],
        **NOTING,
    )
    page.stop.click(actions.stop, outputs=page.stop, **QUICK)
