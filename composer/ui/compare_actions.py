"""What the page that compares does: values of components in, values by component out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.experts.triggers import taken_back, with_words
from composer.fusions import PLAIN
from composer.studio import (
    Comparison,
    Event,
    Finished,
    PictureSaved,
    Progress,
    SavedPicture,
    Studio,
    Way,
)
from composer.ui import compare_views, views
from composer.ui.actions import SEND_EVERY, changed
from composer.ui.compare_layout import ComparePage
from composer.ui.layout import Page
from composer.ui.train_views import picker_view

if TYPE_CHECKING:
    pass

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

    # --- comparing

    def compare(self, request: gr.Request, *values: Any) -> Iterator[Update]:
        """Paint in all ways that are chosen, and show how the grid fills."""
        page = self._page
        try:
            comparison = self._asked(values)
            yield {
                page.pace: {"phase": "starting", "title": "Starting"},
                page.stop: gr.update(interactive=True),
            }
            yield from self._loaded()
            ways = self._studio.ways(comparison)
            yield from self._followed(ways, _owner(request))
        except Exception as error:
            yield self._failed(views.failure(error, "a comparison failed"))

    def stop(self, request: gr.Request) -> Any:
        """Stop this visitor's comparison within one step; what is done stays."""
        self._studio.interrupt(_owner(request))
        return gr.update(interactive=False)

    def _asked(self, values: Sequence[Any]) -> Comparison:
        given = dict(zip(self._page.form, values, strict=True))
        rows = views.read_rows(given.pop("mixer"), PLAIN[0].key)
        lines, seeds = compare_views.read_ways(given.pop("ways"))
        given["seed"] = views.read_seed(given["seed"])
        asked = Request(
            prompt=given.pop("prompt") or "",
            negative_prompt=given.pop("negative") or "",
            count=seeds,
            **given,
        )
        return Comparison(request=asked, rows=rows, lines=lines)

    def _loaded(self) -> Iterator[Update]:
        """Wait for the model: which gates fit is known only then."""
        while (status := self._studio.wait(0.5)).state == "loading":
            yield {self._page.pace: {"phase": "waiting", "title": "Waiting for the model"}}
        if status.state == "failed":
            raise ComposerError(status.message)

    def _followed(self, ways: Sequence[Way], owner: str) -> Iterator[Update]:
        page, seeds = self._page, ways[0].asked.request.count
        view = compare_views.comparison_view(ways)
        places: dict[tuple[int, int], SavedPicture] = {}
        yield {page.comparison: view}
        sent = 0.0
        try:
            for event in self._studio.compare(ways, owner=owner):
                if isinstance(event, PictureSaved):
                    way, seed = divmod(len(places), seeds)
                    places[way, seed] = event.saved
                    view = compare_views.with_picture(view, way, seed, event.saved)
                    yield {page.comparison: view}
                elif isinstance(event, Finished):
                    yield {
                        page.comparison: compare_views.finished_view(view, ways, places),
                        page.pace: compare_views.over_view(event),
                        page.stop: gr.update(interactive=False),
                    }
                elif not isinstance(event, Progress) or time.monotonic() - sent > SEND_EVERY:
                    sent = time.monotonic()
                    yield {page.pace: self._pace(event, ways)}
        except Exception:  # whoever called reports it; the grid must not wait for more
            kept = compare_views.finished_view(view, ways, places) if places else None
            yield {page.comparison: kept}
            raise

    def _pace(self, event: Event, ways: Sequence[Way]) -> views.Json:
        if isinstance(event, Progress):
            return compare_views.pace_view(event, ways)
        return views.event_view(event)

    def _failed(self, message: str) -> Update:
        return {
            self._page.pace: {"phase": "failed", "title": "No comparison", "detail": message},
            self._page.stop: gr.update(interactive=False),
        }


def _owner(request: gr.Request) -> str:
    """Comparisons are stopped apart from the pictures of Compose."""
    return f"{request.session_hash} compares"
