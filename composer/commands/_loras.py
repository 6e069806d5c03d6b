"""The LoRAs that a command is given by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from composer.errors import ComposerError

if TYPE_CHECKING:
    from composer.experts import Card, Library, LoraInfo


def find_once(library: Library[LoraInfo], names: Sequence[str]) -> list[Card]:
    """The card of each name, in their order.

    Raises:
        ComposerError: there is no such LoRA, or one is named twice, if in another spelling.
    """
    cards = [library.find(name) for name in names]
    for index, card in enumerate(cards):
        if any(card.path == before.path for before in cards[:index]):
            raise ComposerError(f"The LoRA {names[index]!r} is named twice: take it out once.")
    return cards
