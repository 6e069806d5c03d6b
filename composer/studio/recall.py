"""What to ask for to get a picture again, though files have been renamed or changed since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from composer.diffusion.prompt import parse_prompt
from composer.diffusion.record import LoraRecord, PictureRecord
from composer.errors import ComposerError
from composer.experts.embedding import asked_in
from composer.experts.hashes import LEAST_DIGITS, SHORT
from composer.fusions import LoraRow, recorded_recipe
from composer.fusions.registry import recipe_now
from composer.fusions.rows import recorded_pins, recorded_places, recorded_spans
from composer.studio.requests import ComposeRequest, row_of

if TYPE_CHECKING:
    from composer.diffusion.model import Model
    from composer.experts.card import Card
    from composer.fusions.libraries import Libraries


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What to ask for, and what the user should know of it."""

    asked: ComposeRequest
    notes: tuple[str, ...] = ()


def recall(record: PictureRecord, libraries: Libraries) -> Recalled:
    """The request of a picture, with its LoRAs, gates and MixLoRA by the names they have now."""
    names, notes = _find_loras(record.loras, libraries)
    rows: dict[str, LoraRow] = {}
    spans, places = recorded_spans(record.fusion), recorded_places(record.fusion)
    for lora in record.loras:
        name = names[lora.name]
        limits = cast(Any, spans.get(lora.name, {}))
        row = replace(row_of(lora), name=name, place=places.get(lora.name), **limits)
        rows[name] = _added(rows[name], row) if name in rows else row
    before = recorded_recipe(record.fusion)
    recipe = recipe_now(record.fusion, libraries, notes)
    pins = () if before is None else before.pins_for(recipe, recorded_pins(record.fusion))
    chosen, pins = recipe.recalled(record.fusion, tuple(rows.values()), pins, names, libraries)
    request = record.request
    if record.start:
        notes.append(
            "This picture began from another one, which is not in it: give that picture as the "
            "start again, with its mask if it had one."
        )
    notes += _find_embeddings(record, libraries)
    negative = parse_prompt(request.negative_prompt, notes)
    if negative.loras:
        tags = ", ".join(map(str, negative.loras))
        notes.append(f"LoRAs act on the whole picture: {tags} in the negative prompt is left out.")
    request = replace(request, negative_prompt=negative.text)
    asked = ComposeRequest(request=request, rows=chosen, recipe=recipe, pins=pins)
    return Recalled(asked=asked, notes=(*record.notes, *notes))


def _added(one: LoraRow, other: LoraRow) -> LoraRow:
    """Two rows of one file, which another program loaded by two names."""
    sums = {part: weight + other.weights[part] for part, weight in one.weights.items()}
    return replace(one, weight=sums["unet"], text_encoder=sums["text_encoder"])


def _find_loras(
    loras: Sequence[LoraRecord], libraries: Libraries
) -> tuple[dict[str, str], list[str]]:
    """The name of each LoRA now; by its hash if there is no file of its name, or another one."""
    library = libraries.known()
    names = {lora.name: lora.name for lora in loras}
    problems: dict[str, str] = {}
    for lora in loras:
        try:
            card = _named(lora.name, libraries)
        except ComposerError as error:
            problems[lora.name] = str(error)
            continue
        names[lora.name] = card.name
        if lora.tensor_hash and not library.is_known_by(card, lora.tensor_hash):
            problems[lora.name] = (
                f"The file of the LoRA {card.name!r} has changed since, so the picture will differ."
            )
    taken = {names[name] for name in names if name not in problems}
    for lora in loras:
        if lora.name not in problems or len(lora.tensor_hash) < LEAST_DIGITS:
            continue
        same = [card for card in library.known_by(lora.tensor_hash) if card.name not in taken]
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


def _find_embeddings(record: PictureRecord, libraries: Libraries) -> list[str]:
    """What is to be said of the embeddings that the prompts name: a word means the file of its
    name, and is not replaced where that is called otherwise now."""
    library = libraries.embeddings
    library.scan()
    prompts = (record.request.prompt, record.request.negative_prompt)
    brought = {
        word for card in libraries.known().seen if card.facts for word in card.facts.embeddings
    }
    known = (*(card.name for card in library.seen), *brought)
    wanted = {**dict.fromkeys(asked_in(prompts, known), ""), **record.embeddings}
    notes: list[str] = []
    for name, digits in wanted.items():
        try:
            card = library.find(name, rescan=False)
        except ComposerError as error:
            same = library.known_by(digits) if len(digits) >= LEAST_DIGITS else ()
            if same:
                said = f"The embedding {name!r} is called {same[0].name!r} now: write that instead."
            elif digits:
                said = f"{error} It was made with the file whose hash begins {digits[:SHORT]}."
            else:
                said = str(error)
            notes.append(said)
            continue
        if digits and not library.is_known_by(card, digits):
            notes.append(
                f"The file of the embedding {card.name!r} has changed since, so the picture will "
                "differ."
            )
    return notes


def _named(name: str, libraries: Libraries) -> Card:
    """The card of that name; its folder may have another name here than in another program.

    Raises:
        ComposerError: there is none.
    """
    try:
        return libraries.lora(name)
    except ComposerError:
        if "/" not in name:
            raise
        return libraries.lora(name.rpartition("/")[2])


def unlike(record: PictureRecord, model: Model) -> tuple[str, ...]:
    """What of the loaded model is not as it was for a picture, which will therefore differ."""
    notes: list[str] = []
    if record.model_hash and not model.hash.startswith(record.model_hash):
        notes.append(
            f"The picture was made by the model {record.model_name!r} (hash "
            f"{record.model_hash[:SHORT]}), and {model.name!r} is loaded: start Composer with that "
            "model to get the same."
        )
    if record.vae_hash:
        same = model.vae_hash.startswith(record.vae_hash)
    else:
        same = model.vae_name == record.vae_name
    if not same:
        named = f"{record.vae_name!r} (hash {record.vae_hash[:SHORT] or 'unknown'})"
        notes.append(
            f"The picture was made with the VAE {named}: start Composer with --vae and that file "
            "to get the same."
            if record.vae_name or record.vae_hash
            else f"The picture was made with its model's own VAE, and {model.vae_name!r} is "
            "loaded: start Composer without --vae to get the same."
        )
    return tuple(notes)
