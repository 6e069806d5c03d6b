"""What the first page does: values of components in, values by component out."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from composer.diffusion.request import DRAWN_SEEDS, RANDOM_SEED, Request
from composer.errors import ComposerError
from composer.experts.triggers import taken_back, with_words
from composer.fusions import PLAIN, LoraRow, Recipe, read_pins, read_recipe
from composer.studio import (
    ComposeRequest,
    Event,
    Finished,
    PictureSaved,
    Progress,
    SavedPicture,
    Studio,
)
from composer.ui import views
from composer.ui.examples import Example, choose_examples
from composer.ui.expand_actions import ExpandActions
from composer.ui.gate_actions import GateActions
from composer.ui.layout import Page, brush_for

if TYPE_CHECKING:
    from composer.experts.card import Card

RECENT = 24
SEND_EVERY = 0.12  # seconds between two reports of progress, at least

Update = dict[Any, Any]
# Changes nothing. An empty dict would not do: Gradio takes it for one value where it wants several.
NOTHING: Update = gr.skip()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


class Actions:
    """The actions of the first page. They keep nothing: the studio does, and the page itself."""

    def __init__(self, studio: Studio, page: Page) -> None:
        self._studio = studio
        self._page = page
        self.gates = GateActions(studio, page)
        self.words = ExpandActions(studio, page)

    # --- the page opens

    def greet(self) -> Iterator[Update]:
        """Fill the page: LoRAs, an example, earlier pictures; then follow the model's loading."""
        page, studio = self._page, self._studio
        yield {page.masthead: views.status_view(studio.status)}
        view, cards = self._library(refresh=True)
        examples = choose_examples(cards.values(), len(page.examples))
        update: Update = {page.library: view, page.strip: self._strip(None)}
        update[page.expander] = self.words.offer()
        for button, example in zip(page.examples, examples, strict=False):
            update[button] = gr.update(value=example.prompt, visible=True)
        if examples:
            update |= self._filled(examples[0], cards)
        yield update
        while True:
            status = studio.wait(1.0)
            update = {page.masthead: views.status_view(status)}
            if status.state == "ready":
                for side in (page.width, page.height):
                    update[side] = gr.update(value=status.size, step=status.multiple)
            yield update
            if status.state != "loading":
                return

    def greet_gates(self) -> Update:
        """Once the model is there: gates that fit it, and for a form still untouched an example
        that is fused by them. Whether it is, the page decides when the proposal arrives: what the
        visitor writes until then stays."""
        page, cards = self._page, self._cards()
        update = self.refresh(None)
        shown = list(self.gates.examples(cards))
        for button, (example, _) in zip(page.gate_examples, shown, strict=False):
            update[button] = gr.update(value=example.prompt, visible=True)
        proposal = None
        if shown:
            example, offer = shown[0]
            first = next(iter(choose_examples(cards.values(), 1)), None)
            form = {**self._filled(example, cards, offer.recipe), page.fusion: offer.recipe.key}
            proposal = {
                "before": {
                    "names": list(first.loras) if first else [],
                    "prompt": first.prompt if first else "",
                },
                "form": [form[field] for field in page.filled],
            }
        update[page.proposal] = proposal
        return update

    def reopen(self, fusion: str | None, current: str | None) -> Update:
        """What came to be while another page was open."""
        return {self._page.strip: self._strip(current), **self.gates.refresh(fusion)}

    def refresh(self, fusion: str | None) -> Update:
        """Look into the LoRA folders again."""
        return {self._page.library: self._library(refresh=True)[0], **self.gates.refresh(fusion)}

    def _library(self, *, refresh: bool) -> tuple[views.Json, dict[str, Card]]:
        try:
            cards = self._studio.cards(refresh=refresh)
        except ComposerError as error:  # a folder is missing: the page works without LoRAs
            return views.library_view((), problems=(str(error),)), {}
        view = views.library_view(cards, problems=self.gates.problems())
        return view, {card.name: card for card in cards}

    def _cards(self) -> dict[str, Card]:
        return views.cards_of(self._studio)

    # --- filling in the form

    def example(self, number: int) -> Callable[[], Update]:
        """The action of the example button of that number."""

        def fill() -> Update:
            cards = self._cards()
            examples = choose_examples(cards.values(), len(self._page.examples))
            return self._filled(examples[number], cards) if number < len(examples) else NOTHING

        return fill

    def gate_example(self, number: int) -> Callable[[], Update]:
        """The action of the example button of that number that brings gates."""

        def fill() -> Update:
            cards = self._cards()
            for index, (example, offer) in enumerate(self.gates.examples(cards)):
                if index == number:
                    return self._filled(example, cards, offer.recipe)
            gr.Warning("Press Refresh to see which gates there are.", title="These gates are gone")
            return NOTHING

        return fill

    def _filled(
        self, example: Example, cards: dict[str, Card], recipe: Recipe = PLAIN[0]
    ) -> Update:
        usual = (LoraRow(name=name, weight=cards[name].info.weight) for name in example.loras)
        rows = PLAIN[0].chosen_again(usual, recipe)
        return {
            self._page.mixer: [views.row_view(row, cards.get(row.name), recipe) for row in rows],
            self._page.prompt: example.prompt,
            self._page.fusion: self.gates.fusion(recipe),
            self._page.pins: "",
        }

    def add_trigger(self, prompt: str, wanted: bool, event: gr.EventData) -> Any:
        """The prompt with the trigger words of a LoRA that was just chosen."""
        words = [views.trigger_of(self._studio, event)] if wanted else []
        return changed(prompt, with_words(prompt, words))

    def remove_trigger(self, prompt: str, wanted: bool, event: gr.EventData) -> Any:
        """The prompt without the trigger words of a LoRA that was just removed."""
        words = views.trigger_of(self._studio, event) if wanted else ""
        return changed(prompt, taken_back(prompt, words))

    def take_settings(self, event: gr.EventData) -> Update:
        """The settings of a LoRA for few steps that was just chosen; nothing for any other."""
        card = views.cards_of(self._studio).get(str(event.name))
        tool = None if card is None else card.info.tool
        if card is None or tool is None:
            return NOTHING
        name = views.escaped(card.info.title or card.name)
        gr.Info(f"{name} is for few steps: {tool.words} are set.", title=tool.name)
        return {getattr(self._page, field): value for field, value in tool.settings.items()}

    def use(self, current: str | None) -> Update:
        """All settings of the picture that is shown."""
        try:
            return self._restored(self._studio.history.find(current)) if current else NOTHING
        except ComposerError as error:
            gr.Warning(views.escaped(error), title="No settings")
            return NOTHING

    def reuse_seed(self, current: str | None) -> Update:
        """The seed of the picture that is shown, and no new one each time."""
        try:
            if not current:
                return NOTHING
            seed = self._studio.history.find(current).record.request.seed
        except ComposerError as error:
            gr.Warning(views.escaped(error), title="No seed")
            return NOTHING
        return {self._page.seed: seed, self._page.new_seed: False}

    def begin(self, current: str | None) -> Update:
        """The picture that is shown as the one to begin from."""
        try:
            if not current:
                return NOTHING
            picture = self._studio.history.find(current)
        except ComposerError as error:
            gr.Warning(views.escaped(error), title="No picture")
            return NOTHING
        request = picture.record.request
        side = min(request.width or 0, request.height or 0) * request.hires
        start = gr.update(
            value={"background": str(picture.path), "layers": [], "composite": None},
            brush=brush_for(int(side)),
        )
        return {self._page.start: start, self._page.starting: gr.update(open=True)}

    def uploaded(self, value: object) -> Update:
        """A brush that fits the picture that was chosen to begin from."""
        start = views.read_start(value)
        if start is None:
            return NOTHING
        return {self._page.start: gr.update(brush=brush_for(min(start.image.size)))}

    def restore(self, file: str | None) -> Update:
        """All settings of a picture that was dropped on the page."""
        update: Update = {self._page.restore: None}
        if file:
            try:
                update |= self._restored(self._studio.history.read(Path(file)))
            except ComposerError as error:
                gr.Warning(views.escaped(error), title="No settings in this file")
            else:
                gr.Info("Press Generate to make it again.", title="Settings restored")
        return update

    def _restored(self, picture: SavedPicture) -> Update:
        return self._filled_in(self._recalled(picture))

    def _recalled(self, picture: SavedPicture) -> ComposeRequest:
        recalled = self._studio.recall(picture)
        if recalled.notes:
            notes = views.escaped(" ".join(recalled.notes))
            gr.Warning(notes, title="Not everything is as it was")
        return recalled.asked

    def _filled_in(self, asked: ComposeRequest) -> Update:
        """The whole form, so that it asks for this."""
        page, cards, request = self._page, self._cards(), asked.request
        lines = [views.row_view(row, cards.get(row.name), asked.recipe) for row in asked.rows]
        return {
            page.mixer: lines,
            page.fusion: self.gates.fusion(asked.recipe),
            page.pins: "\n".join(map(str, asked.pins)),
            page.pinning: gr.update(open=bool(asked.pins)),
            page.prompt: request.prompt,
            page.negative: request.negative_prompt,
            page.steps: request.steps,
            page.cfg_scale: request.cfg_scale,
            page.sampler: request.sampler,
            page.schedule: request.schedule,
            page.count: 1,
            page.clip_skip: request.clip_skip,
            page.hires: request.hires,
            page.strength: request.strength,
            page.start: None,
            page.width: request.width,
            page.height: request.height,
            page.seed: request.seed,
            page.new_seed: False,
        }

    # --- painting

    def generate(self, request: gr.Request, *values: Any) -> Iterator[Update]:
        """Paint what the form asks for, and show how it goes."""

        def asked() -> tuple[ComposeRequest, Update]:
            wanted = self._asked(values)
            return wanted, {self._page.seed: wanted.request.seed}

        yield from self._paint(asked, str(request.session_hash))

    def remake(self, request: gr.Request, current: str | None) -> Iterator[Update]:
        """Paint the picture that is shown again: without its gates, or with gates for its LoRAs."""

        def asked() -> tuple[ComposeRequest, Update]:
            picture = self._studio.history.find(current or "")
            wanted, cards = self._recalled(picture), self._cards()
            if picture.gated:
                usual = {name: card.info.weight for name, card in cards.items()}
                wanted = wanted.with_recipe(PLAIN[0], usual=usual)
            elif (offer := self.gates.gates_for(picture)) is not None:
                there = {row.name: row for row in wanted.with_recipe(offer.recipe).rows}
                loras = tuple(there[name] for name in offer.loras)
                wanted = replace(wanted.with_recipe(offer.recipe), rows=loras)
            form = self._filled_in(wanted)
            kept = (self._page.seed, self._page.new_seed, self._page.count)
            return wanted, {field: value for field, value in form.items() if field not in kept}

        yield from self._paint(asked, str(request.session_hash))

    def _paint(
        self, ask: Callable[[], tuple[ComposeRequest, Update]], owner: str
    ) -> Iterator[Update]:
        page = self._page
        try:
            asked, form = ask()
            yield {
                page.stage: {"phase": "starting", "title": "Starting"},
                page.stop: gr.update(interactive=True),
                **form,
            }
            sent = 0.0
            for event in self._studio.compose(asked, owner=owner):
                if isinstance(event, Progress) and event.step < event.steps:
                    if time.monotonic() - sent < SEND_EVERY:
                        continue
                    sent = time.monotonic()
                yield self._report(event)
        except Exception as error:
            yield self._failed(views.failure(error, "a picture failed"))

    def stop(self, request: gr.Request) -> Any:
        """Stop this visitor's jobs within one step."""
        self._studio.interrupt(str(request.session_hash))
        return gr.update(interactive=False)

    def pick(self, event: gr.EventData) -> Update:
        """Show an earlier picture."""
        try:
            return self._show(self._studio.history.find(str(event.id)))
        except ComposerError as error:
            return {self._page.stage: _no_picture(str(error))}

    def _asked(self, values: Sequence[Any]) -> ComposeRequest:
        given = dict(zip(self._page.form, values, strict=True))
        recipe, new_seed = read_recipe(given.pop("fusion")), given.pop("new_seed")
        rows = views.read_rows(given.pop("mixer"), recipe.key)
        pins = read_pins(given.pop("pins") or "")
        start = views.read_start(given.pop("start"))
        given["seed"] = RANDOM_SEED if new_seed else views.read_seed(given["seed"])
        if given["seed"] == RANDOM_SEED:
            given["seed"] = secrets.randbelow(DRAWN_SEEDS)
        request = Request(
            prompt=given.pop("prompt") or "", negative_prompt=given.pop("negative") or "", **given
        )
        return ComposeRequest(
            request=request,
            rows=rows,
            recipe=recipe,
            gate_map=recipe.gated,
            pins=pins,
            start=start,
        )

    def _report(self, event: Event) -> Update:
        if isinstance(event, PictureSaved):
            shown = self._show(event.saved, phase="working")
            return {**shown, self._page.strip: self._strip(event.saved.id)}
        if isinstance(event, Finished):
            return self._ended(event)
        return {self._page.stage: views.event_view(event)}

    def _ended(self, event: Finished) -> Update:
        update: Update = {self._page.stop: gr.update(interactive=False)}
        if event.pictures:
            last = event.pictures[-1]
            update[self._page.stage] = views.picture_view(last, detail=views.ended(event))
        elif event.cancelled:
            update[self._page.stage] = {"phase": "stopped", "title": "Stopped", "fraction": 0.0}
        return update

    def _failed(self, message: str) -> Update:
        return {
            self._page.stage: _no_picture(message),
            self._page.stop: gr.update(interactive=False),
        }

    def _show(self, picture: SavedPicture, phase: str = "done") -> Update:
        page = self._page
        return {
            page.stage: views.picture_view(picture, phase=phase),
            page.recipe: gr.update(value=views.recipe(picture, self._cards()), visible=True),
            page.actions: gr.update(visible=True),
            page.download: views.download(picture),
            page.current: picture.id,
            **self.gates.shown(picture),
        }

    def _strip(self, selected: str | None) -> views.Json:
        return views.strip_view(self._studio.history.recent(RECENT), selected)


def changed(prompt: str, new: str) -> Any:
    """The new prompt; nothing where it is the old one, for an answer that comes late would take
    back what was written meanwhile."""
    return NOTHING if new == prompt else new


def _no_picture(message: str) -> views.Json:
    return {"phase": "failed", "title": "No picture", "detail": message}
