"""What the first page does with learned gates and MixLoRAs: offer them, choose them, show them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from composer.errors import ComposerError
from composer.fusions import FUSIONS
from composer.studio import (
    GateOffer,
    LoraRow,
    MixLoraOffer,
    Pin,
    SavedPicture,
    Studio,
    read_pins,
)
from composer.ui import gate_views, views
from composer.ui.examples import Example, gate_example
from composer.ui.layout import Page

if TYPE_CHECKING:
    from composer.studio import Card

Update = dict[Any, Any]
WEIGHTED = next(iter(FUSIONS))
GATED = "Gates that were trained for these LoRAs share them out."


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

    def fusion(self, chosen: str | None, cards: Mapping[str, Card]) -> Any:
        """The list of fusions as it is now, with this one chosen; None leaves the choice."""
        mixloras = self.mixloras()
        choices = gate_views.fusion_choices(self.offers(), cards, chosen or "", mixloras)
        return (
            gr.update(choices=choices)
            if chosen is None
            else gr.update(choices=choices, value=chosen, info=describe(chosen, mixloras))
        )

    def follow(self, fusion: str | None, mixer: object) -> Update:
        """After another fusion was chosen: its description, and the LoRAs of its gates; those in
        whose place a MixLoRA stands are switched off."""
        page, cards, chosen = self._page, self._cards(), fusion or WEIGHTED
        offers = self.offers()
        update: Update = {
            page.fusion: gr.update(info=describe(chosen, self.mixloras())),
            page.gates: gate_views.offers_view(offers, cards, chosen),
        }
        offer = next((o for o in offers if o.name == gate_views.gates_of(chosen)), None)
        if offer is not None:
            update[page.mixer] = self.rows(offer, mixer, cards)
        placed = self._mixlora(chosen)
        if placed is not None:
            update[page.mixer] = self._without(placed, mixer, cards)
        return update

    def _mixlora(self, fusion: str) -> MixLoraOffer | None:
        name = gate_views.mixlora_of(fusion)
        return next((o for o in self.mixloras() if o.name == name), None) if name else None

    def _without(self, offer: MixLoraOffer, mixer: object, cards: Mapping[str, Card]) -> Any:
        """The mixer's lines, with those LoRAs off whose triggers the MixLoRA knows."""
        try:
            there = views.read_rows(mixer)
        except ComposerError:
            return gr.update()
        known = {r.name for r in there if r.name in cards and _knows(offer, cards[r.name])}
        rows = [replace(row, on=row.on and row.name not in known) for row in there]
        return [views.row_view(row, cards.get(row.name)) for row in rows]

    def rows(self, offer: GateOffer, mixer: object, cards: Mapping[str, Card]) -> list[Any]:
        """The mixer's lines for gates, switched as they are there."""
        try:
            there = {row.name: row for row in views.read_rows(mixer)}
        except ComposerError:
            there = {}
        lines: list[Any] = []
        for name in offer.loras:
            weight = cards[name].info.weight if name in cards else 1.0
            row = there.get(name, LoraRow(name=name, unet=weight))
            lines.append(views.row_view(row, cards.get(name)))
        return lines

    def choose(self, event: gr.EventData) -> Any:
        """The gates that were offered for what is in the mixer."""
        return self.fusion(str(event.id), self._cards())

    def leave(self) -> Any:
        """Back to weights."""
        return self.fusion(WEIGHTED, self._cards())

    def grown(self, fusion: str, event: gr.EventData) -> Any:
        """A LoRA was added: gates that do not know it give way to weights, and so does a MixLoRA
        that has learned the same."""
        placed, card = self._mixlora(fusion), self._cards().get(str(event.name))
        if placed is not None and card is not None and _knows(placed, card):
            words = views.escaped(gate_views.mixlora_title(placed))
            gr.Info(f"{words} knows it already, so weights are used now.", title="Weights again")
            return self.leave()
        name = gate_views.gates_of(fusion)
        offer = next((offer for offer in self.offers() if offer.name == name), None)
        if offer is None or str(event.name) in offer.loras:
            return gr.update()
        known = views.escaped(gate_views.titles(offer.loras, self._cards()))
        gr.Info(f"The gates know {known} alone, so weights are used now.", title="Weights again")
        return self.leave()

    def refresh(self, fusion: str | None) -> Update:
        """Gates that were trained meanwhile."""
        cards = self._cards()
        return {
            self._page.fusion: self.fusion(None, cards),
            self._page.gates: gate_views.offers_view(self.offers(), cards, fusion or ""),
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
            rows = [row for row in views.read_rows(mixer) if row.on]
            there = read_pins(said)
        except ComposerError:  # a line is being written; it is told when a picture is asked for
            rows, there = [], ()
        if not rows or any(pin.units == unit for pin in there):
            return {page.pins: pins, **open_now}
        line = str(Pin(unit, {row.name: 1.0 for row in rows}))
        return {page.pins: f"{said}\n{line}".lstrip(), **open_now}

    def _cards(self) -> dict[str, Card]:
        try:
            return {card.name: card for card in self._studio.cards()}
        except ComposerError:
            return {}


def _knows(offer: MixLoraOffer, card: Card) -> bool:
    return offer.knows(card.info.trigger)


def describe(fusion: str, mixloras: Iterable[MixLoraOffer] = ()) -> str:
    """What a fusion does, in words."""
    if name := gate_views.mixlora_of(fusion):
        return gate_views.describe_mixlora(next((o for o in mixloras if o.name == name), None))
    return GATED if gate_views.gates_of(fusion) else FUSIONS[fusion].description
