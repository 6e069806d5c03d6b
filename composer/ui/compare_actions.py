"""What the page that compares does: values of components in, values by component out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.experts.triggers import taken_back, with_words
from composer.fusions import PLAIN
from composer.studio import (
    Comparison,
    ComposeRequest,
    Event,
    Finished,
    PictureSaved,
    Progress,
    Studio,
)
from composer.studio.axes import GridCell
from composer.studio.comparing import cells_of_ways
from composer.ui import compare_views, views
from composer.ui.actions import SEND_EVERY, changed
from composer.ui.compare_layout import ENCODERS, ComparePage
from composer.ui.compare_views import Sheet
from composer.ui.layout import Page
from composer.ui.train_views import picker_view

Update = dict[Any, Any]


class CompareActions:
    """The actions of the page. They keep nothing: the studio does, and the page itself.

    compose: the first page, from which settings are taken over.
    """

    def __init__(self, studio: Studio, page: ComparePage, compose: Page) -> None:
        self._studio = studio
        self._page = page
        self._compose = compose

    # --- the page opens, the form is filled

    def open(self, mixer: object, prompt: str, ways: object, *compose: Any) -> Update:
        """Fill the page when its tab is opened; a form still untouched takes over from Compose."""
        update = self.refresh(ways)
        if not mixer and not prompt:
            update |= self.take(*compose)
        return update

    def refresh(self, ways: object) -> Update:
        """Look into the LoRA folders again."""
        page = self._page
        cards = views.cards_of(self._studio, refresh=True)
        offers, problems = self._studio.offers(tuned=True)
        return {
            page.picker: {**picker_view(cards.values()), "title": "LoRAs to compare"},
            page.ways: compare_views.ways_view(ways, offers, problems),
        }

    def take(self, *compose: Any) -> Update:
        """The prompt, the LoRAs with their weights, the seed and the sampling of Compose."""
        given = dict(zip(self._compose.form, compose, strict=True))
        cards = views.cards_of(self._studio)
        try:
            rows = views.read_rows(given["mixer"], PLAIN[0].key)
        except ComposerError as error:
            gr.Warning(views.escaped(error), title="No LoRAs were taken over")
            rows = ()
        page = self._page
        taken: Update = {field: given[name] for name, field in page.form.items() if name in given}
        taken[page.mixer] = [views.row_view(row, cards.get(row.name), PLAIN[0]) for row in rows]
        return taken

    def add_trigger(self, prompt: str, event: gr.EventData) -> Any:
        """The prompt with the trigger words of a LoRA that was just chosen."""
        return changed(prompt, with_words(prompt, [views.trigger_of(self._studio, event)]))

    def remove_trigger(self, prompt: str, event: gr.EventData) -> Any:
        """The prompt without the trigger words of a LoRA that was just removed."""
        return changed(prompt, taken_back(prompt, views.trigger_of(self._studio, event)))

    # --- before anything is painted

    def check(self, request: gr.Request, mixer: object, prompt: str) -> Iterator[Update]:
        """What the LoRAs do to each other, with the prompt also on some steps of the bare model."""
        page = self._page
        yield {
            page.conflicts: {"status": "Measuring …"},
            page.check: gr.update(interactive=False),
            page.stop: gr.update(interactive=True),
        }
        shown: Any = None
        try:
            rows = views.read_rows(mixer, PLAIN[0].key)
            asked = ComposeRequest(request=Request(prompt=prompt or ""), rows=rows)
            for event in self._studio.conflicts(asked, owner=_owner(request)):
                if isinstance(event, Progress):
                    status = f"Step {event.step} of {event.steps} of the bare model"
                    yield {page.conflicts: {"status": status}}
                elif not isinstance(event, Event):
                    shown = {"advice": list(event.advice), "lines": list(map(list, event.lines))}
        except Exception as error:
            shown = {"status": views.failure(error, "LoRAs were not checked")}
        yield {
            page.conflicts: shown,
            page.check: gr.update(interactive=True),
            page.stop: gr.update(interactive=False),
        }

    # --- comparing

    def compare(self, request: gr.Request, *values: Any) -> Iterator[Update]:
        """Paint in all ways that are chosen, and show how the grid fills."""
        page = self._page
        try:
            comparison, scoring = self._asked(values)
            yield {
                page.pace: {"phase": "starting", "title": "Starting"},
                page.stop: gr.update(interactive=True),
            }
            yield from self._loaded()
            ways = self._studio.ways(comparison)
            axes, cells = cells_of_ways(ways, comparison.axes)
            sheet = compare_views.Sheet(ways, axes, cells, self._titles())
            yield from self._followed(sheet, cells, scoring, _owner(request))
        except Exception as error:
            yield self._failed(views.failure(error, "a comparison failed"))

    def stop(self, request: gr.Request) -> Any:
        """Stop this visitor's comparison within one step; what is done stays."""
        self._studio.interrupt(_owner(request))
        return gr.update(interactive=False)

    def _asked(self, values: Sequence[Any]) -> tuple[Comparison, dict[str, Any]]:
        """What is to be compared, and how its pictures are scored, as `Studio.grid` takes it."""
        given = dict(zip(self._page.form, values, strict=True))
        rows = views.read_rows(given.pop("mixer"), PLAIN[0].key)
        choice = compare_views.read_ways(given.pop("ways"))
        scoring: dict[str, Any] = {name: (given.pop(name) or "").strip() for name in ENCODERS}
        given["seed"] = views.read_seed(given["seed"])
        asked = Request(
            prompt=given.pop("prompt") or "",
            negative_prompt=given.pop("negative") or "",
            count=choice.seeds,
            **given,
        )
        axes = choice.read_axes()
        return Comparison(request=asked, rows=rows, lines=choice.lines, axes=axes), {
            "scored": choice.scored,
            **scoring,
        }

    def _titles(self) -> dict[str, str]:
        cards = self._studio.cards()
        return {card.name: card.info.title or card.name for card in cards if not card.error}

    def _loaded(self) -> Iterator[Update]:
        """Wait for the model: which gates fit is known only then."""
        while (status := self._studio.wait(0.5)).state == "loading":
            yield {self._page.pace: {"phase": "waiting", "title": "Waiting for the model"}}
        if status.state == "failed":
            raise ComposerError(status.message)

    def _followed(
        self, sheet: Sheet, cells: Sequence[GridCell], scoring: Mapping[str, Any], owner: str
    ) -> Iterator[Update]:
        page = self._page
        yield {page.comparison: sheet.view}
        sent = 0.0
        try:
            for event in self._studio.grid(cells, **scoring, owner=owner):
                if isinstance(event, PictureSaved):
                    continue  # its place comes next
                if not isinstance(event, Event):
                    sheet.fill(event)
                    # scores come all at once
                    if event.scores is None:
                        yield {page.comparison: sheet.view}
                elif isinstance(event, Finished):
                    yield {
                        page.comparison: sheet.finish(),
                        page.pace: compare_views.over_view(event, sheet.pictures),
                        page.stop: gr.update(interactive=False),
                    }
                elif not isinstance(event, Progress):
                    yield {page.pace: views.event_view(event)}
                elif time.monotonic() - sent > SEND_EVERY:
                    sent = time.monotonic()
                    yield {page.pace: sheet.pace(event)}
        except Exception:  # whoever called reports it; the grid must not wait for more
            yield {page.comparison: sheet.finish() if sheet.pictures else None}
            raise

    def _failed(self, message: str) -> Update:
        return {
            self._page.pace: {"phase": "failed", "title": "No comparison", "detail": message},
            self._page.stop: gr.update(interactive=False),
        }


def _owner(request: gr.Request) -> str:
    """Comparisons are stopped apart from the pictures of Compose."""
    return f"{request.session_hash} compares"
