"""What can be used with the loaded model and the LoRAs at hand: gates, MixLoRAs, tuned weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from composer.errors import ComposerError
from composer.fusions.learned import match_loras
from composer.fusions.recipe import Offer
from composer.fusions.registry import RECIPES
from composer.fusions.sums import Sum

if TYPE_CHECKING:
    from composer.experts.info import LoraInfo
    from composer.experts.library import Library
    from composer.fusions.libraries import Libraries
    from composer.fusions.tuned_weights import TunedWeights


def offers_of(
    libraries: Libraries, model: str, model_hash: str, *, tuned: bool = False
) -> tuple[tuple[Offer, ...], tuple[str, ...]]:
    """What can be used, and a line for each file that cannot.

    tuned: tuned weights, too.
    """
    loras = libraries.known()
    found: list[Offer] = []
    problems: list[str] = []
    for kind in RECIPES.values():
        for card in libraries.of(kind).cards() if kind.source else ():
            try:
                card.info.check_model(model, model_hash)
                found.append(kind(file=card.name).offer(card, loras))
            except ComposerError as error:
                problems.append(str(error) if card.error else f"{card.path}: {error}")
    if tuned:
        cards = libraries.weights.scan()
        sound = (card.facts for card in cards if card.facts is not None)
        found += _sums((tuned for tuned in sound if tuned.model_hash == model_hash), loras)
        problems += [card.error for card in cards if card.error is not None]
    return tuple(found), tuple(problems)


def _sums(found: Iterable[TunedWeights], library: Library[LoraInfo]) -> Iterator[Offer]:
    """Sums of LoRAs at hand; of several for the same LoRAs the first."""
    there: set[frozenset[str]] = set()
    for tuned in found:
        wanted = {lora.name: lora.tensor_hash for lora in tuned.loras}
        loras, hashes = match_loras(wanted, library, wait=False)
        names = frozenset(lora.name for lora in loras.values())
        if hashes != wanted or names in there:  # one is missing, or another file than it was
            continue
        there.add(names)
        yield Offer(
            recipe=Sum(),
            loras=tuple(lora.name for lora in loras.values()),
            titles=tuple(lora.info.title or lora.name for lora in loras.values()),
            description=Sum.description,
            weights={loras[name].name: weight for name, weight in tuned.weights().items()},
            found_by=tuned.found_by,
        )
