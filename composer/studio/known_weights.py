"""The best known weights of LoRAs at hand: what a search found, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from composer.studio.gating import match_loras

if TYPE_CHECKING:
    from composer.experts.library import Library
    from composer.fusions.tuned_weights import TunedWeights


@dataclass(frozen=True, kw_only=True)
class WeightOffer:
    """Weights by the names that the LoRAs have now; `told` says how they were found."""

    weights: Mapping[str, float]
    told: str


def weight_offers(
    found: Iterable[TunedWeights], library: Library, model_hash: str
) -> tuple[WeightOffer, ...]:
    """Those for this model and for LoRAs at hand; of several for the same LoRAs the first."""
    offers: dict[frozenset[str], WeightOffer] = {}
    for tuned in found:
        if tuned.model_hash != model_hash:
            continue
        wanted = {lora.name: lora.tensor_hash for lora in tuned.loras}
        loras, hashes = match_loras(wanted, library, wait=False)
        if hashes != wanted:  # one is missing, or another file than it was
            continue
        weights = {loras[name].name: weight for name, weight in tuned.weights().items()}
        offers.setdefault(frozenset(weights), WeightOffer(weights=weights, told=tuned.told))
    return tuple(offers.values())
