"""The page that trains gates: choose LoRAs, start, and watch them learn."""

from __future__ import annotations

from typing import Any

import gradio as gr

from composer.studio import Studio
from composer.ui.compose_page import NOTING, QUICK
from composer.ui.train_actions import TrainActions
from composer.ui.train_layout import lay_out


def add(tab: gr.Tab, studio: Studio) -> None:
    """Add the page to its tab, which is open. It is filled when somebody opens the tab."""
    page = lay_out()
    actions = TrainActions(studio, page)
    news = page.news
    drafted = [page.prompts, page.problem, page.name, page.suggested]
    tab.select(
        actions.open,
        [page.prompts, page.shown],
        [page.picker, *drafted, *news],
        **QUICK,
    )
    # The events of our own components have names of ours, which Gradio's types do not know.
    picker: Any = page.picker
    chosen: Any = page.prompts
    trainings: Any = page.trainings
    picker.refresh(actions.refresh, outputs=[page.picker, page.problem], **QUICK)
    chosen.changed(actions.draft, [page.prompts, page.name, page.suggested], drafted, **QUICK)
    settings = list(page.settings.values())
    page.recommended.click(lambda: actions.preset(False), outputs=settings, **QUICK)
    page.published.click(lambda: actions.preset(True), outputs=settings, **QUICK)
    begun = [page.problem, page.name, page.suggested, *news]
    page.start.click(actions.start, page.form, begun, **NOTING)
    page.stop.click(actions.stop, page.shown, news, **NOTING)
    page.resume.click(actions.resume, page.shown, news, **NOTING)
    trainings.resume(actions.resume_row, outputs=news, **NOTING)
    trainings.forget(actions.forget_row, page.shown, news, **NOTING)
    trainings.show(actions.show_row, outputs=news, **QUICK)
    page.timer.tick(actions.follow, [page.shown, page.sent], news, **QUICK)
