"""What the page shows of gates and MixLoRAs: which are offered, and the weights they gave."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from composer.errors import ComposerError
from composer.fusions import PLAIN, Recipe, read_recipe
from composer.studio import GateOffer, MixLoraOffer, SavedPicture

if TYPE_CHECKING:
    from composer.fusions.gate_record import GateRecord, Row
    from composer.studio import Card

MAX_STEPS_SHOWN = 32

Json = dict[str, Any]
ROWS: tuple[tuple[Row, str, str], ...] = (
    ("with_prompt", "With the prompt", "prompt"),
    ("without", "Without it", "without"),
)


def titles(names: Iterable[str], cards: Mapping[str, Card]) -> str:
    """LoRAs in words: "Zibo + Neon"."""
    return " + ".join((cards[n].info.title or n) if n in cards else n for n in names)


def fusion_choices(
    offers: Iterable[GateOffer],
    cards: Mapping[str, Card],
    chosen: str = "",
    mixloras: Iterable[MixLoraOffer] = (),
) -> list[tuple[str, str]]:
    """The ways of fusing, titles and values; `chosen` is among them even if it does not fit."""
    choices = [(recipe.title, recipe.key) for recipe in PLAIN]
    offers = tuple(offers)
    words = [titles(offer.loras, cards) for offer in offers]
    for offer, text in zip(offers, words, strict=True):
        apart = f" ({offer.name})" if words.count(text) > 1 else ""
        choices.append((f"{offer.recipe.title}: {text}{apart}", offer.recipe.key))
    choices += [(mixlora_title(offer), offer.recipe.key) for offer in mixloras]
    if chosen and chosen not in [value for _, value in choices]:
        choices.append((read_recipe(chosen).label, chosen))
    return choices


def mixlora_title(offer: MixLoraOffer) -> str:
    """A MixLoRA in words: "MixLoRA: Zibo + Tavo + Luna"."""
    return f"{offer.recipe.title}: {' + '.join(offer.titles)}"


def describe(recipe: Recipe, mixloras: Iterable[MixLoraOffer] = ()) -> str:
    """What a recipe does, in words."""
    offer = next((offer for offer in mixloras if offer.recipe == recipe), None)
    if offer is None:
        return recipe.description
    words = ", ".join(offer.triggers)
    return (
        "Sparse experts, trained on all of them at once, in the place of their LoRAs. Write what "
        f"calls them: {words}. LoRAs in the mixture are added by their weights; it needs none."
    )


def offers_view(offers: Iterable[GateOffer], cards: Mapping[str, Card], chosen: Recipe) -> Json:
    """The line under the mixer: what gates are there, and which are chosen."""
    shown = [
        {
            "id": offer.recipe.key,
            "name": offer.name,
            "title": titles(offer.loras, cards),
            "names": list(offer.loras),
        }
        for offer in offers
    ]
    return {"offers": shown, "chosen": chosen.key if chosen.gated else None}


def map_view(picture: SavedPicture, cards: Mapping[str, Card]) -> Json:
    """The gate map of a picture in full. Shares are whole percents, by expert, step and unit.

    Raises:
        ComposerError: there is none, or it is damaged.
    """
    record = picture.gate_record()
    if record is None:
        raise ComposerError("The gate map of this picture is gone.")
    rows = [
        _row_view(record, row, label, f"{picture.path.stem}-gates-{short}.png")
        for row, label, short in ROWS
        if row == "with_prompt" or record.without is not None
    ]
    return {
        "id": picture.id,
        "experts": [
            {
                "title": titles([name], cards),
                "role": cards[name].info.role if name in cards else "other",
            }
            for name in record.experts
        ],
        "units": [{"name": name, "stage": _stage(name)} for name in record.units],
        "rows": rows,
        "numbers": _address("application/zip", picture.gates_path.read_bytes()),
        "file": picture.gates_path.name,
    }


def _row_view(record: GateRecord, row: Row, label: str, file: str) -> Json:
    from composer.evaluation.heat_map import heat_map

    shares: Any = record.shares(row)  # (steps, units, experts)
    steps = len(shares)
    kept = [i * steps // MAX_STEPS_SHOWN for i in range(MAX_STEPS_SHOWN)]
    some = shares if steps <= MAX_STEPS_SHOWN else shares[kept]
    buffer = io.BytesIO()
    heat_map(record, row).save(buffer, "PNG")
    return {
        "label": label,
        "mean": _percents(shares.mean(0).T),  # experts, units
        "steps": _percents(some.transpose(2, 0, 1)),  # experts, steps, units
        "entropy": [round(float(value), 2) for value in record.entropy(row)],
        "png": _address("image/png", buffer.getvalue()),
        "file": file,
    }


def _percents(shares: Any) -> list[Any]:
    return (100 * shares).round().astype(int).tolist()


def _stage(unit: str) -> str:
    for part, words in (("down_blocks", "down"), ("mid_block", "middle"), ("up_blocks", "up")):
        if f".{part}" in unit:
            return words
    return ""


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
