"""Example prompts that suit the LoRAs at hand; the first one greets whoever opens the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt and the names of its LoRAs."""

    prompt: str
    loras: tuple[str, ...]


# Each a wording with the roles of the LoRAs whose triggers it takes.
WORDINGS = (
    ("{character} {background}", ("character", "background")),
    ("{character} in the snow, {style}", ("character", "style")),
    ("a panda {clothing} in the city, {style}", ("clothing", "style")),
    ("{character} and {object} at sunset", ("character", "object")),
)

if TYPE_CHECKING:
    from composer.experts.card import Card


def choose_examples(cards: Iterable[Card], most: int) -> tuple[Example, ...]:
    """Up to so many examples; none for LoRAs that do not say what they are."""
    by_role: dict[str, list[Card]] = {}
    for card in cards:
        if card.error is None and card.info.trigger:
            by_role.setdefault(card.info.role, []).append(card)
    return tuple(_made(by_role))[:most]


def _made(by_role: dict[str, list[Card]]) -> Iterator[Example]:
    for number, (wording, roles) in enumerate(WORDINGS):
        if all(role in by_role for role in roles):
            chosen = {role: by_role[role][number % len(by_role[role])] for role in roles}
            triggers = {role: card.info.trigger for role, card in chosen.items()}
            yield Example(
                prompt=wording.format(**triggers),
                loras=tuple(card.name for card in chosen.values()),
            )


def gate_example(cards: Sequence[Card]) -> Example | None:
    """A prompt for just these LoRAs, all at once; None if one does not say how it is called."""
    if not cards or not all(card.info.trigger for card in cards):
        return None
    said: dict[str, list[str]] = {}
    for card in cards:
        said.setdefault(card.info.role, []).append(card.info.trigger)
    worn, places, styles = (said.pop(role, []) for role in ("clothing", "background", "style"))
    subjects = [trigger for triggers in said.values() for trigger in triggers]
    if worn or not subjects:  # as the prompts that gates are trained on: beside a character
        subjects.append(" ".join(["a panda", *worn]))
    scene = " ".join([" and ".join(subjects), *(places or ["in the snow"])])
    return Example(prompt=", ".join([scene, *styles]), loras=tuple(card.name for card in cards))
