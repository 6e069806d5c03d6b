"""What can be used with the loaded model and the LoRAs at hand: gates, MixLoRAs, tuned weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from composer.errors import ComposerError
from composer.fusions import Gates, MixLora
from composer.fusions.learned import find_loras, match_loras

if TYPE_CHECKING:
    from composer.experts.info import LoraInfo
    from composer.experts.library import Entry, Library
    from composer.fusions.libraries import GateCard, MixLoraCard
    from composer.fusions.tuned_weights import TunedWeights


@dataclass(frozen=True, kw_only=True)
class GateOffer:
    """Gates that fit the model and the LoRAs at hand; `loras` by the names they have now."""

    name: str
    loras: tuple[str, ...]

    @property
    def recipe(self) -> Gates:
        """To fuse by these gates."""
        return Gates(file=self.name)


@dataclass(frozen=True, kw_only=True)
class MixLoraOffer:
    """A MixLoRA that fits the model; what it has learned, by title and by trigger."""

    name: str
    titles: tuple[str, ...]
    triggers: tuple[str, ...]

    @property
    def recipe(self) -> MixLora:
        """To draw with this MixLoRA."""
        return MixLora(file=self.name)

    def knows(self, trigger: str) -> bool:
        """Whether it has learned what these words call."""
        wanted = trigger.strip().casefold()
        return bool(wanted) and wanted in (known.strip().casefold() for known in self.triggers)


@dataclass(frozen=True, kw_only=True)
class WeightOffer:
    """Weights by the names that the LoRAs have now; `told` says how they were found."""

    weights: Mapping[str, float]
    told: str


def gate_offers(
    cards: Iterable[GateCard], library: Library[LoraInfo], model: str, model_hash: str
) -> tuple[tuple[GateOffer, ...], tuple[str, ...]]:
    """The gates that can be used, and a line for each file that cannot."""
    found: list[GateOffer] = []
    problems: list[str] = []
    for card in cards:
        try:
            card.info.check_model(model, model_hash)
            loras = find_loras(card, library, wait=False)  # a page waits for the answer
        except ComposerError as error:
            problems.append(str(error) if card.facts is None else f"{card.path}: {error}")
        else:
            names = tuple(lora.name for lora in loras.values())
            found.append(GateOffer(name=card.name, loras=names))
    return tuple(found), tuple(problems)


def mixlora_offers(
    cards: Iterable[MixLoraCard], model: str, model_hash: str
) -> tuple[tuple[MixLoraOffer, ...], tuple[str, ...]]:
    """Those that can be used, and a line for each file that cannot."""
    found: list[MixLoraOffer] = []
    problems: list[str] = []
    for card in cards:
        if card.facts is None:
            problems.append(str(card.error))
            continue
        try:
            card.facts.check_model(model, model_hash)
        except ComposerError as error:
            problems.append(f"{card.path}: {error}")
            continue
        found.append(
            MixLoraOffer(
                name=card.name,
                titles=tuple(one.name for one in card.info.sets),
                triggers=tuple(one.trigger for one in card.info.sets),
            )
        )
    return tuple(found), tuple(problems)


def weight_offers(
    cards: Iterable[Entry[TunedWeights]], library: Library[LoraInfo], model_hash: str
) -> tuple[tuple[WeightOffer, ...], tuple[str, ...]]:
    """Those for this model and for LoRAs at hand, of several for the same LoRAs the first, and a
    line for each file that cannot be used."""
    cards = tuple(cards)
    offers: dict[frozenset[str], WeightOffer] = {}
    for tuned in (card.facts for card in cards if card.facts is not None):
        if tuned.model_hash != model_hash:
            continue
        wanted = {lora.name: lora.tensor_hash for lora in tuned.loras}
        loras, hashes = match_loras(wanted, library, wait=False)
        if hashes != wanted:  # one is missing, or another file than it was
            continue
        weights = {loras[name].name: weight for name, weight in tuned.weights().items()}
        offers.setdefault(frozenset(weights), WeightOffer(weights=weights, told=tuned.told))
    return tuple(offers.values()), tuple(card.error for card in cards if card.error)
