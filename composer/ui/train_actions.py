"""What the page that trains gates does: values of components in, values by component out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from composer.errors import ComposerError
from composer.studio import Studio, Training, TrainingRequest
from composer.ui import train_views as views
from composer.ui.examples import choose_examples
from composer.ui.train_layout import DEFAULT, INVITATION, TrainPage, label_of
from composer.ui.views import escaped, failure

if TYPE_CHECKING:
    from composer.experts.card import Card

Update = dict[Any, Any]


class TrainActions:
    """The actions of the page. They keep nothing: the studio's trainings do."""

    def __init__(self, studio: Studio, page: TrainPage) -> None:
        self._studio = studio
        self._trainings = studio.trainings
        self._page = page

    # --- the page opens

    def open(self, value: Any, shown: str | None) -> Update:
        """Fill the page when its tab is opened: LoRAs, a first pair of them, what is running."""
        cards, problem = self._cards(refresh=True)
        update: Update = {
            self._page.picker: views.picker_view(cards.values()),
            self._page.problem: _problem(problem),
            **self._news(shown, None),
        }
        if not views.read_prompts(value)["loras"]:
            first = choose_examples(cards.values(), 1)
            loras = [views.lora_line(cards[name]) for name in (first[0].loras if first else ())]
            if len(loras) > 1:
                update |= self._drafted(views.no_prompts(loras), "", "")
        return update

    def refresh(self) -> Update:
        """Look into the LoRA folders again."""
        cards, problem = self._cards(refresh=True)
        return {
            self._page.picker: views.picker_view(cards.values()),
            self._page.problem: _problem(problem),
        }

    def _cards(self, *, refresh: bool = False) -> tuple[dict[str, Card], str]:
        try:
            return {card.name: card for card in self._studio.cards(refresh=refresh)}, ""
        except ComposerError as error:  # a folder is missing
            return {}, str(error)

    # --- what the gates learn from

    def draft(self, value: Any, name: str, suggested: str) -> Update:
        """Write prompts for the LoRAs that are chosen now, and a name for the result."""
        try:
            return self._drafted(views.read_prompts(value), name, suggested)
        except ComposerError as error:
            return {self._page.problem: _problem(str(error))}

    def _drafted(self, chosen: views.Json, name: str, suggested: str) -> Update:
        page, loras = self._page, chosen["loras"]
        problem = ""
        if loras:
            try:
                drafted = self._trainings.draft({one["name"]: one["trigger"] for one in loras})
                chosen["loras"] = [
                    views.redrafted(one, drafted.alone[one["name"]]) for one in loras
                ]
                chosen["together"] = views.redrafted(chosen["together"], drafted.composed)
            except ComposerError as error:
                problem = str(error)
        update: Update = {page.prompts: chosen, page.problem: _problem(problem)}
        if not (name or "").strip() or name == suggested:
            filled = self._trainings.suggest([one["name"] for one in loras]) if loras else ""
            update |= {page.name: filled, page.suggested: filled}
        return update

    def preset(self, published: bool) -> Update:
        """All settings as recommended, or as published."""
        wanted = {**DEFAULT, "paper": published}
        return {field: wanted[name] for name, field in self._page.settings.items()}

    # --- training

    def start(self, *values: Any) -> Update:
        """Begin what the form asks for, and show it."""
        page = self._page
        try:
            training = self._trainings.start(self._asked(values))
        except Exception as error:
            return {page.problem: _problem(failure(error, "a training did not start"))}
        name = self._trainings.suggest(training.request.loras)
        return {
            page.problem: _problem(""),
            page.name: name,
            page.suggested: name,
            **self._news(training.name, None),
        }

    def _asked(self, values: tuple[Any, ...]) -> TrainingRequest:
        name, value, *rest = values
        chosen = views.read_prompts(value)
        settings = dict(zip(self._page.settings, rest, strict=True))
        for setting, value in settings.items():
            if value is None:
                raise ComposerError(f"{label_of(setting)} is empty: give a number.")
        settings["clip"] = settings["clip"].strip()
        return TrainingRequest(
            name=(name or "").strip(),
            loras=tuple(one["name"] for one in chosen["loras"]),
            prompts=views.lines(chosen["together"]["text"]),
            alone={one["name"]: views.lines(one["text"]) for one in chosen["loras"]},
            **settings,
        )

    def stop(self, shown: str | None) -> Update:
        """Stop the training that is shown. What comes of it the timer shows: an answer from here
        could overtake the news that it has stopped."""
        found = self._shown(shown)
        self._try(lambda: found and self._trainings.stop(found.name))
        return {self._page.stop: gr.update(visible=False)}

    def resume(self, shown: str | None) -> Update:
        """Go on with the training that is shown."""
        found = self._shown(shown)
        return self._done(lambda: found and self._trainings.resume(found.name), shown)

    def resume_row(self, event: gr.EventData) -> Update:
        """Go on with a training of the list, and show it."""
        name = str(event.name)
        return self._done(lambda: self._trainings.resume(name), name)

    def forget_row(self, shown: str | None, event: gr.EventData) -> Update:
        """Forget a training of the list."""
        name = str(event.name)
        return self._done(lambda: self._trainings.forget(name), None if shown == name else shown)

    def show_row(self, event: gr.EventData) -> Update:
        """Show a training of the list."""
        return self._news(str(event.name), None)

    def follow(self, shown: str | None, sent: dict[str, str] | None) -> Update:
        """What is new since this page was sent last. Which training is shown is not sent again: a
        row may have been clicked meanwhile."""
        update = self._news(shown, sent)
        update.pop(self._page.shown)
        return update

    def _done(self, act: Any, shown: str | None) -> Update:
        self._try(act)
        return self._news(shown, None)

    @staticmethod
    def _try(act: Any) -> None:
        try:
            act()
        except ComposerError as error:
            gr.Warning(escaped(error), title="That is not possible")

    # --- how it goes

    def _shown(self, shown: str | None, known: Sequence[Training] | None = None) -> Training | None:
        """The training of that name, else the one that runs, else the newest."""
        known = self._trainings.all() if known is None else known
        named = [training for training in known if training.name == shown]
        running = [training for training in known if training.state in ("running", "stopping")]
        return next(iter([*named, *running, *known]), None)

    def _news(self, shown: str | None, sent: dict[str, str] | None) -> Update:
        """The parts that differ from what was sent."""
        page, known = self._page, self._trainings.all()
        found = self._shown(shown, known)
        cards, _ = self._cards()
        state = found.state if found else ""
        values: Update = {
            page.live: views.training_view(found, cards) if found else INVITATION,
            page.previews: views.previews_view(found) if found else {"pictures": []},
            page.trainings: views.trainings_view(known, cards, found.name if found else None),
        }
        marks = {str(part.elem_id): _mark(value) for part, value in values.items()}
        buttons = {
            page.stop: state in ("running", "waiting"),
            page.resume: bool(found and views.resumes(found)),
        }
        marks["state"] = str(list(buttons.values()))
        old = sent or {}
        update: Update = {
            part: value
            for part, value in values.items()
            if old.get(part.elem_id) != marks[part.elem_id]
        }
        if old.get("state") != marks["state"]:
            update |= {button: gr.update(visible=seen) for button, seen in buttons.items()}
        return {**update, page.sent: marks, page.shown: shown}


def _mark(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _problem(message: str) -> Any:
    if not message:
        return gr.update(value="", visible=False)
    return gr.update(value=f'<p class="problem" role="alert">{escaped(message)}</p>', visible=True)
