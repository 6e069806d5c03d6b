"""What to ask for to get a picture again, though files have been renamed or changed since."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from composer.diffusion.record import LoraRecord, PictureRecord
from composer.errors import ComposerError
from composer.fusions import FUSIONS
from composer.studio.gating import recalled_choice
from composer.studio.limits import ALWAYS, Limits
from composer.studio.requests import GATES, MIXLORA, ComposeRequest, LoraRow

if TYPE_CHECKING:
    from composer.experts.card import Card
    from composer.experts.library import Library
    from composer.fusions.gate_library import GateLibrary
    from composer.fusions.mixlora_library import MixLoraLibrary
    from composer.fusions.own_library import OwnCard, OwnLibrary

    Found = TypeVar("Found", bound=OwnCard[Any])

SHORT = 12  # digits of a hash, as A1111 shows them
LEAST_DIGITS = 8  # fewer tell too little


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What to ask for, and what the user should know of it."""

    asked: ComposeRequest
    notes: tuple[str, ...] = ()


def recall(
    record: PictureRecord,
    library: Library,
    find: Callable[[str], Card],
    gate_library: Callable[[], GateLibrary],
    mixlora_library: Callable[[], MixLoraLibrary],
) -> Recalled:
    """The request of a picture, with its LoRAs, gates and MixLoRA by the names they have now.

    find: the card of a LoRA's name; it raises ComposerError for a name that cannot be used.
    gate_library, mixlora_library: called for a picture that was made with gates, or a MixLoRA.
    """
    names, notes = _find_loras(record.loras, library, find)
    rows: dict[str, LoraRow] = {}
    limits = Limits.recorded(record.fusion)
    for lora in record.loras:
        name = names[lora.name]
        spans = {
            "steps": limits.steps.get(lora.name, ALWAYS),
            "depth": limits.depth.get(lora.name, ALWAYS),
        }
        rows.setdefault(name, replace(LoraRow.of(lora), name=name, **spans))
    asked = ComposeRequest(request=record.request, rows=tuple(rows.values()))
    fusion = str(record.fusion.get("name", ""))
    if fusion == GATES:
        words = ("The gates", "are", "have", "The weighted sum is used instead.")
        card = _find_own(record.fusion, GATES, gate_library(), words, notes)
        if card is not None:
            gated, pins = recalled_choice(card, record.fusion, tuple(rows), library)
            asked = replace(asked, rows=gated, gates=card.name, pins=pins)
    elif fusion == MIXLORA:
        words = ("The MixLoRA", "is", "has", "The picture is made without it.")
        placed = _find_own(record.fusion, MIXLORA, mixlora_library(), words, notes)
        pins = limits.renamed(names).pins
        asked = replace(asked, mixlora="" if placed is None else placed.name, pins=pins)
    elif fusion in FUSIONS:
        asked = replace(asked, fusion=fusion, pins=limits.renamed(names).pins)
    else:
        notes.append(f"The fusion {fusion!r} is not known here; the weighted sum is used instead.")
    return Recalled(asked=asked, notes=(*record.notes, *notes))


def _find_own(
    fusion: Mapping[str, Any],
    key: str,
    library: OwnLibrary[Found],
    words: tuple[str, str, str, str],
    notes: list[str],
) -> Found | None:
    """The gate file or MixLoRA of a picture; by its hash if none has its name, or another one has.

    key: where the record has its name. words: "The gates", "are", "have", and what is done without.
    """
    what, are, have, without = words
    name, digits = str(fusion.get(key, "")), str(fusion.get("hash", ""))
    named, problem = None, ""
    try:
        named = library.find(name)
    except ComposerError as error:
        problem = str(error)
    if named is not None and (not digits or library.hash(named).startswith(digits)):
        return named
    same = library.with_hash(digits) if len(digits) >= LEAST_DIGITS else ()
    if same:
        notes.append(f"{what} {name!r} {are} called {same[0].name!r} now.")
        return same[0]
    if named is not None:
        notes.append(
            f"{what} {named.name!r} {have} changed since, so the picture will differ: it was made "
            f"with the file whose hash begins {digits[:SHORT]}."
        )
        return named
    hashed = f" The file's hash begins {digits[:SHORT]}." if digits else ""
    notes.append(f"{problem}{hashed} {without}")
    return None


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
