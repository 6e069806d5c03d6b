"""What the page shows of gates and MixLoRAs: which are offered, and the weights they gave."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from composer.errors import ComposerError
from composer.fusions import PLAIN, Offer, Recipe, read_recipe
from composer.settings import choices_of, fields_of
from composer.studio import SavedPicture
from composer.ui.layout import PARAMETERS

if TYPE_CHECKING:
    from composer.experts.card import Card
    from composer.fusions.gate_record import GateRecord, Row

MAX_STEPS_SHOWN = 32

Json = dict[str, Any]
ROWS: tuple[tuple[Row, str, str], ...] = (
    ("with_prompt", "With the prompt", "prompt"),
    ("without", "Without it", "without"),
)


def fusion_choices(offers: Iterable[Offer], chosen: str = "") -> list[tuple[str, str]]:
    """The ways of fusing, titles and values: the usual ones, what is offered, then the others;
    `chosen` is among them even if it does not fit."""
    kind = chosen.partition(":")[0]
    # with the parameters that were chosen, in the place of the usual ones
    plain = [(r, chosen if chosen and r.kind == kind else r.key) for r in PLAIN]
    offers = tuple(offers)
    words = [offer.title for offer in offers]
    offered: list[tuple[str, str]] = []
    for offer in offers:
        apart = f" ({offer.recipe.file})" if words.count(offer.title) > 1 else ""
        offered.append((f"{offer.title}{apart}", offer.recipe.key))
    choices = [
        *((recipe.title, key) for recipe, key in plain if recipe.usual),
        *offered,
        *((recipe.title, key) for recipe, key in plain if not recipe.usual),
    ]
    if chosen and chosen not in [value for _, value in choices]:
        choices.append((read_recipe(chosen).label, chosen))
    return choices


def describe(recipe: Recipe, offers: Iterable[Offer] = ()) -> str:
    """What a recipe does, in words."""
    found = (offer.description for offer in offers if offer.recipe == recipe)
    return next(found, recipe.description)


def parameters_view(recipe: Recipe) -> list[Json]:
    """What the fields for parameters show: numbers, then a choice; those not needed are hidden."""
    kinds = fields_of(type(recipe))
    numbers: list[Json] = []
    choice: Json = {"visible": False}
    for name, value in recipe.parameters.items():
        kind, about = kinds[name]
        words = {"label": about.label or name, "info": about.help, "visible": True, "value": value}
        if choices := choices_of(kind):
            choice = {**words, "choices": list(choices)}
        else:
            numbers.append({**words, "precision": 0 if kind is int else None})
    hidden = [{"visible": False}] * (PARAMETERS - len(numbers))
    return [*numbers, *hidden, choice]


def with_parameters(recipe: Recipe, values: Sequence[Any]) -> Recipe:
    """The recipe with what the fields for parameters hold; an empty one has the default.

    Raises:
        ComposerError: a value is out of its range.
    """
    kinds = fields_of(type(recipe))
    names = list(recipe.parameters)
    numbers = iter(values[:PARAMETERS])
    given: Json = {}
    for name in names:
        value = values[PARAMETERS] if choices_of(kinds[name][0]) else next(numbers)
        whole = kinds[name][0] is int and value is not None and float(value).is_integer()
        if value is not None:
            given[name] = int(value) if whole else value
    return type(recipe)(**given)


def offers_view(offers: Iterable[Offer], chosen: Recipe) -> Json:
    """The line under the mixer: what is there for just its LoRAs, and what is chosen of it."""
    shown = [
        {
            "id": offer.recipe.key,
            "name": offer.recipe.file,
            "title": " + ".join(offer.titles),
            "names": list(offer.loras),
        }
        for offer in offers
        if not offer.instead
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
                "title": (cards[name].info.title or name) if name in cards else name,
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
