"""What the first page does with learned gates and MixLoRAs: offer them, choose them, show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from composer.errors import ComposerError
from composer.fusions import PLAIN, Gates, LoraRow, Pin, Recipe, read_pins, read_recipe
from composer.studio import GateOffer, MixLoraOffer, SavedPicture, Studio
from composer.ui import gate_views, views
from composer.ui.examples import Example, gate_example
from composer.ui.layout import Page

if TYPE_CHECKING:
    from composer.studio import Card

Update = dict[Any, Any]


class GateActions:
    """The actions that have to do with gates. They keep nothing."""

    def __init__(self, studio: Studio, page: Page) -> None:
        self._studio = studio
        self._page = page

    def offers(self) -> tuple[GateOffer, ...]:
        """The gates that fit the model and the LoRAs at hand."""
        return self._studio.gate_offers()[0]

    def mixloras(self) -> tuple[MixLoraOffer, ...]:
        """The MixLoRAs that fit the model."""
        return self._studio.mixlora_offers()[0]

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the other gate files and MixLoRAs."""
        return (*self._studio.gate_offers()[1], *self._studio.mixlora_offers()[1])

    def fusion(self, chosen: Recipe | None, cards: Mapping[str, Card]) -> Any:
        """The list of fusions as it is now, with this one chosen; None leaves the choice."""
        mixloras, key = self.mixloras(), "" if chosen is None else chosen.key
        choices = gate_views.fusion_choices(self.offers(), cards, key, mixloras)
        if chosen is None:
            return gr.update(choices=choices)
        return gr.update(choices=choices, value=key, info=gate_views.describe(chosen, mixloras))

    def follow(self, fusion: str | None, mixer: object) -> Update:
        """After another fusion was chosen: its description, and the LoRAs of its gates; those in
        whose place a MixLoRA stands are switched off."""
        page, cards, chosen = self._page, self._cards(), read_recipe(fusion or PLAIN[0].key)
        offers, mixloras = self.offers(), self.mixloras()
        update: Update = {
            page.fusion: gr.update(info=gate_views.describe(chosen, mixloras)),
            page.gates: gate_views.offers_view(offers, cards, chosen),
        }
        for offer in offers:
            if offer.recipe == chosen:
                update[page.mixer] = self.rows(offer, mixer, cards)
        for offer in mixloras:
            if offer.recipe == chosen:
                update[page.mixer] = self._without(offer, mixer, cards)
        return update

    def _without(self, offer: MixLoraOffer, mixer: object, cards: Mapping[str, Card]) -> Any:
        """The mixer's lines, with those LoRAs off whose triggers the MixLoRA knows."""
        try:
            lines = views.read_lines(mixer)
        except ComposerError:
            return gr.update()
        known = {line["name"] for line in lines if _knows(offer, cards.get(line["name"]))}
        return [{**line, "on": line["on"] and line["name"] not in known} for line in lines]

    def rows(self, offer: GateOffer, mixer: object, cards: Mapping[str, Card]) -> list[Any]:
        """The mixer's lines for gates, switched as they are there."""
        try:
            there = {line["name"]: line for line in views.read_lines(mixer)}
        except ComposerError:
            there = {}
        new = (LoraRow(name=name) for name in offer.loras)
        return [there.get(r.name, views.row_view(r, cards.get(r.name), offer.recipe)) for r in new]

    def choose(self, event: gr.EventData) -> Any:
        """The gates that were offered for what is in the mixer, or were just trained."""
        name = getattr(event, "name", None)
        recipe = read_recipe(event.id) if name is None else Gates(file=str(name))
        return self.fusion(recipe, self._cards())

    def leave(self) -> Any:
        """Back to weights."""
        return self.fusion(PLAIN[0], self._cards())

    def grown(self, fusion: str, event: gr.EventData) -> Any:
        """A LoRA was added: gates that do not know it give way to weights, and so does a MixLoRA
        that has learned the same."""
        added, cards = str(event.name), self._cards()
        for offer in self.mixloras():
            if offer.recipe.key == fusion and _knows(offer, cards.get(added)):
                words = views.escaped(gate_views.mixlora_title(offer))
                return self._weights_again(f"{words} knows it already")
        for offer in self.offers():
            if offer.recipe.key == fusion and added not in offer.loras:
                known = views.escaped(gate_views.titles(offer.loras, cards))
                return self._weights_again(f"The gates know {known} alone")
        return gr.update()

    def _weights_again(self, why: str) -> Any:
        gr.Info(f"{why}, so weights are used now.", title="Weights again")
        return self.leave()

    def refresh(self, fusion: str | None) -> Update:
        """Gates that were trained meanwhile."""
        cards, chosen = self._cards(), read_recipe(fusion or PLAIN[0].key)
        return {
            self._page.fusion: self.fusion(None, cards),
            self._page.gates: gate_views.offers_view(self.offers(), cards, chosen),
        }

    # --- examples

    def examples(self, cards: Mapping[str, Card]) -> Iterator[tuple[Example, GateOffer]]:
        """A prompt for each gate file whose LoRAs say how they are called."""
        for offer in self.offers():
            loras = [cards[name] for name in offer.loras if name in cards]
            if (example := gate_example(loras)) is not None:
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

    def gates_for(self, picture: SavedPicture) -> GateOffer | None:
        """Gates for just the LoRAs of a picture."""
        names = {lora.name for lora in picture.record.loras}
        return next((o for o in self.offers() if names and set(o.loras) == names), None)

    def look(self, event: gr.EventData) -> Any:
        """The gate map in full, of the picture that is shown."""
        try:
            picture = self._studio.history.find(str(event.id))
            return gate_views.map_view(picture, self._cards())
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

    def _cards(self) -> dict[str, Card]:
        try:
            return {card.name: card for card in self._studio.cards()}
        except ComposerError:
            return {}


def _knows(offer: MixLoraOffer, card: Card | None) -> bool:
    return card is not None and offer.knows(card.info.trigger)
