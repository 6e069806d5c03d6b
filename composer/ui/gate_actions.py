"""What the first page does with learned gates and MixLoRAs: offer them, choose them, show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from composer.errors import ComposerError
from composer.fusions import PLAIN, Gates, Offer, Pin, Recipe, read_pins, read_recipe
from composer.studio import SavedPicture, Studio
from composer.ui import gate_views, views
from composer.ui.examples import Example, gate_example
from composer.ui.layout import Page

if TYPE_CHECKING:
    from composer.experts.card import Card

Update = dict[Any, Any]


class GateActions:
    """The actions that have to do with gates. They keep nothing."""

    def __init__(self, studio: Studio, page: Page) -> None:
        self._studio = studio
        self._page = page

    def offers(self) -> tuple[Offer, ...]:
        """The gates and MixLoRAs that fit the model and the LoRAs at hand."""
        return self._studio.offers()[0]

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the other files of theirs."""
        return self._studio.offers()[1]

    def fusion(self, chosen: Recipe | None) -> Any:
        """The list of fusions as it is now, with this one chosen; None leaves the choice."""
        offers, key = self.offers(), "" if chosen is None else chosen.key
        choices = gate_views.fusion_choices(offers, key)
        if chosen is None:
            return gr.update(choices=choices)
        return gr.update(choices=choices, value=key, info=gate_views.describe(chosen, offers))

    def follow(self, fusion: str | None, mixer: object) -> Update:
        """After another fusion was chosen: its description, and the mixer for what is offered."""
        page, chosen, offers = self._page, read_recipe(fusion or PLAIN[0].key), self.offers()
        update: Update = {
            page.fusion: gr.update(info=gate_views.describe(chosen, offers)),
            page.gates: gate_views.offers_view(offers, chosen),
            page.places: {"shown": chosen.by_places},
        }
        update |= self._fields(chosen)
        for offer in offers:
            if offer.recipe == chosen:
                rows = self.rows(offer, mixer)
                # the mixer may have changed since: rows that were right are not put back
                if rows != mixer:
                    update[page.mixer] = rows
        return update

    def set_parameters(self, fusion: str | None, *values: Any) -> Update:
        """The fusion with the parameters that its fields hold; a bad one is told, and the fields
        show again what holds."""
        page, chosen = self._page, read_recipe(fusion or PLAIN[0].key)
        try:
            return {page.fusion: self.fusion(gate_views.with_parameters(chosen, values))}
        except ComposerError as error:
            gr.Warning(views.escaped(error), title="That cannot be")
            return self._fields(chosen)

    def _fields(self, recipe: Recipe) -> Update:
        """The fields for parameters."""
        shown = zip(self._page.parameters, gate_views.parameters_view(recipe), strict=True)
        return {field: gr.update(**view) for field, view in shown}

    def rows(self, offer: Offer, mixer: object) -> Any:
        """The mixer's lines: just those for an offer, switched as they are there; or all, with
        those off in whose place it stands."""
        try:
            lines = views.read_lines(mixer)
        except ComposerError:
            if offer.instead:
                return gr.update()
            lines = []
        if offer.instead:
            return [
                {**line, "on": line["on"] and line["name"] not in offer.loras} for line in lines
            ]
        there, cards = {line["name"]: line for line in lines}, views.cards_of(self._studio)
        if there.keys() == set(offer.loras):
            return lines
        new = offer.rows(offer.loras)
        return [there.get(r.name, views.row_view(r, cards.get(r.name), offer.recipe)) for r in new]

    def choose(self, event: gr.EventData) -> Any:
        """The gates that were offered for what is in the mixer, or were just trained."""
        name = getattr(event, "name", None)
        recipe = read_recipe(event.id) if name is None else Gates(file=str(name))
        return self.fusion(recipe)

    def leave(self) -> Any:
        """Back to weights."""
        return self.fusion(PLAIN[0])

    def grown(self, fusion: str, event: gr.EventData) -> Any:
        """A LoRA was added: gates that do not know it give way to weights, and so does a MixLoRA
        that has learned the same."""
        for offer in self.offers():
            if offer.recipe.key == fusion and (str(event.name) in offer.loras) == offer.instead:
                why = (
                    f"{offer.title} knows it already"
                    if offer.instead
                    else f"The gates know {' + '.join(offer.titles)} alone"
                )
                return self._weights_again(views.escaped(why))
        return gr.update()

    def _weights_again(self, why: str) -> Any:
        gr.Info(f"{why}, so weights are used now.", title="Weights again")
        return self.leave()

    def refresh(self, fusion: str | None) -> Update:
        """Gates that were trained meanwhile."""
        chosen = read_recipe(fusion or PLAIN[0].key)
        return {
            self._page.fusion: self.fusion(None),
            self._page.gates: gate_views.offers_view(self.offers(), chosen),
        }

    # --- examples

    def examples(self, cards: Mapping[str, Card]) -> Iterator[tuple[Example, Offer]]:
        """A prompt for each gate file whose LoRAs say how they are called."""
        for offer in self.offers():
            loras = [cards[name] for name in offer.loras if name in cards]
            if not offer.instead and (example := gate_example(loras)) is not None:
                yield example, offer

    # --- a finished picture

    def shown(self, picture: SavedPicture) -> Update:
        """The gate map and the way to the same picture without gates, or with them."""
        page = self._page
        return {
            page.gate_map: {"id": picture.id} if picture.gates_path.is_file() else None,
            page.other_way: gr.update(visible=bool(way := self.other_way(picture)), value=way),
        }

    def other_way(self, picture: SavedPicture) -> str:
        """What the button says that makes it again in the other way; empty if there is none."""
        if picture.gated:
            return "Same by weights"
        return "Same by gates" if self.gates_for(picture) else ""

    def gates_for(self, picture: SavedPicture) -> Offer | None:
        """Gates for just the LoRAs of a picture."""
        names = {lora.name for lora in picture.record.loras}
        return next((o for o in self.offers() if names and not o.instead and o.fits(names)), None)

    def look(self, event: gr.EventData) -> Any:
        """The gate map in full, of the picture that is shown."""
        try:
            picture = self._studio.history.find(str(event.id))
            return gate_views.map_view(picture, views.cards_of(self._studio))
        except ComposerError as error:
            gr.Warning(views.escaped(error), title="No gate map")
            return None

    def pin(self, pins: str | None, mixer: object, event: gr.EventData) -> Update:
        """A line more for a unit of the map, at the weights it has without gates, to be changed."""
        page, unit, said = self._page, str(event.unit), (pins or "").rstrip()
        open_now: Update = {page.pinning: gr.update(open=True)}
        try:
            names = [str(line["name"]) for line in views.read_lines(mixer) if line["on"]]
            there = read_pins(said)
        except ComposerError:  # a line is being written; it is checked when a picture is asked for
            names, there = [], ()
        if not names or any(pin.units == unit for pin in there):
            return {page.pins: pins, **open_now}
        line = str(Pin(unit, dict.fromkeys(names, 1.0)))
        return {page.pins: f"{said}\n{line}".lstrip(), **open_now}
