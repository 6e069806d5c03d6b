"""What to ask for to get a picture again, though files have been renamed or changed since."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from composer.diffusion.record import LoraRecord, PictureRecord
from composer.errors import ComposerError
from composer.fusions import FUSIONS
from composer.studio.requests import ComposeRequest, LoraRow

if TYPE_CHECKING:
    from composer.experts.card import Card
    from composer.experts.library import Library

SHORT = 12  # digits of a hash, as A1111 shows them
LEAST_DIGITS = 8  # fewer tell too little


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What to ask for, and what the user should know of it."""

    asked: ComposeRequest
    notes: tuple[str, ...] = ()


def recall(record: PictureRecord, library: Library, find: Callable[[str], Card]) -> Recalled:
    """The request of a picture, with its LoRAs by the names they have in the library now.

    find: the card of a name; it raises ComposerError for a name that cannot be used.
    """
    names, notes = _find_loras(record.loras, library, find)
    rows: dict[str, LoraRow] = {}
    for lora in record.loras:
        name = names[lora.name]
        rows.setdefault(name, replace(LoraRow.of(lora), name=name))
    fusion = str(record.fusion.get("name", ""))
    if fusion not in FUSIONS:
        notes.append(f"The fusion {fusion!r} is not known here; the weighted sum is used instead.")
        fusion = next(iter(FUSIONS))
    return Recalled(
        asked=ComposeRequest(request=record.request, rows=tuple(rows.values()), fusion=fusion),
        notes=(*record.notes, *notes),
    )


def _find_loras(
    loras: Sequence[LoraRecord], library: Library, find: Callable[[str], Card]
) -> tuple[dict[str, str], list[str]]:
    """The name of each LoRA now; by its hash if there is no file of its name, or another one."""
    names = {lora.name: lora.name for lora in loras}
    problems: dict[str, str] = {}
    for lora in loras:
        try:
            card = find(lora.name)
        except ComposerError as error:
            problems[lora.name] = str(error)
            continue
        names[lora.name] = card.name
        if lora.tensor_hash and not library.tensor_hash(card).startswith(lora.tensor_hash):
            problems[lora.name] = (
                f"The file of the LoRA {card.name!r} has changed since, so the picture will differ."
            )
    taken = {names[name] for name in names if name not in problems}
    for lora in loras:
        if lora.name not in problems or len(lora.tensor_hash) < LEAST_DIGITS:
            continue
        same = [card for card in library.with_hash(lora.tensor_hash) if card.name not in taken]
        if same:
            names[lora.name] = same[0].name
            taken.add(same[0].name)
            problems[lora.name] = f"The LoRA {lora.name!r} is called {same[0].name!r} now."
        else:
            problems[lora.name] += (
                f" It was made with the file whose hash begins {lora.tensor_hash[:SHORT]}: put "
                "that into a LoRA folder."
            )
    return names, list(problems.values())
