"""Fusions: from the weights a user gives to those of the gate."""

from __future__ import annotations

from typing import Any

import pytest

from composer.errors import ComposerError
from composer.fusions import (
    PLAIN,
    RECIPES,
    Gates,
    LoraRow,
    MixLora,
    Normalised,
    Offer,
    Pin,
    Regions,
    Sum,
    read_recipe,
    recorded_recipe,
)


def test_every_recipe_explains_itself_and_comes_back_by_its_key() -> None:
    assert [recipe.key for recipe in PLAIN if recipe.usual] == ["weighted", "nla", "regions"]
    assert len({recipe.title for recipe in PLAIN}) == len(PLAIN)
    for kind in RECIPES.values():
        recipe = kind(file="a:b" if kind.source else "")
        assert recipe.title and recipe.description.endswith(".")
        assert read_recipe(recipe.key) == recipe
        record = {"name": recipe.kind} | ({recipe.source: "a:b"} if recipe.source else {})
        assert recorded_recipe(record) == recipe


@pytest.mark.parametrize("kind", list(RECIPES))
def test_a_file_is_named_where_one_is_needed_and_nowhere_else(kind: str) -> None:
    with pytest.raises(ComposerError, match=kind):
        RECIPES[kind](file="" if RECIPES[kind].source else "pair")


def test_weights_of_a_sum_are_no_strengths_of_gates() -> None:
    rows = (LoraRow(name="a", weight=0.4, text_encoder=0.1, on=False, steps=(0.0, 0.5)),)
    pair = Gates(file="pair")
    assert Sum().chosen_again(rows, Regions()) == rows
    assert pair.chosen_again(rows, Gates(file="other")) == rows
    for before, after in ((Sum(), pair), (pair, MixLora(file="both"))):
        (row,) = before.chosen_again(rows, after)
        assert row == LoraRow(name="a", on=False, steps=(0.0, 0.5))
        (row,) = before.chosen_again(rows, after, {"a": 0.7, "b": 2.0})
        assert row.weight == (0.7 if before == pair else 1.0)


def test_pins_stay_where_units_are_called_as_before() -> None:
    pins, pair, both = (Pin.read("*: a=1"),), Gates(file="pair"), MixLora(file="both")
    for before, after in ((Sum(), pair), (Sum(), both), (both, Sum()), (pair, Gates(file="b"))):
        assert before.pins_for(after, pins) == pins
    assert pair.pins_for(Sum(), pins) == pair.pins_for(both, pins) == ()


def test_a_row_and_what_was_off_are_told_as_the_recipe_heeds_them() -> None:
    row, odd = LoraRow(name="a", weight=1.0), {"switches": {"a": False, "b": True, 3: 0}}
    assert (Sum().number(row), Gates(file="pair").number(row)) == ("1", "")
    assert Gates(file="pair").number(LoraRow(name="a", weight=0.5)) == "× 0.5"
    assert Sum().off(odd) == () == Gates(file="pair").off({"switches": 3})
    assert Gates(file="pair").off(odd) == ("a", "3")


def test_an_offer_is_for_just_its_loras_or_in_their_place() -> None:
    tuned = Offer(
        recipe=Sum(), loras=("a", "b"), titles=("A", "B"), description="", weights={"a": 0.5}
    )
    assert tuned.title == "Weighted sum: A + B"
    assert tuned.fits(("b", "a")) and not any(map(tuned.fits, ([], ["a"], ["a", "b", "c"])))
    assert tuned.rows(("b", "a")) == (LoraRow(name="b"), LoraRow(name="a", weight=0.5))
    placed = Offer(
        recipe=MixLora(file="m"), loras=("a", "b"), titles=("A",), description="", instead=True
    )
    assert placed.fits(["a"]) and placed.fits(["a", "c"]) and not placed.fits(["c"])
    assert placed.rows(("a", "c")) == (LoraRow(name="c"),)


@pytest.mark.parametrize(
    "weights", [{}, {"a": 0.8, "b": -2.0}, {"a": {"unet": 0.1, "text_encoder": 0.0}, "b": 1}]
)
def test_weighted_changes_nothing(weights: dict[str, Any]) -> None:
    assert Sum().weigh(weights) == weights


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, {}),
        ({"a": 0.3}, {"a": 1.0}),
        ({"a": 1, "b": 1, "c": 2}, {"a": 0.25, "b": 0.25, "c": 0.5}),
        ({"a": 3.0, "b": -1.0}, {"a": 1.5, "b": -0.5}),
        ({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0}),
        (
            {"a": {"unet": 0.5, "text_encoder": 3.0}, "b": {"unet": 0.5, "text_encoder": 1.0}},
            {"a": {"unet": 0.5, "text_encoder": 0.75}, "b": {"unet": 0.5, "text_encoder": 0.25}},
        ),
        (
            {"a": {"unet": 0.5, "text_encoder": 0.0}, "b": {"unet": 1.5, "text_encoder": 0.0}},
            {"a": {"unet": 0.25, "text_encoder": 0.0}, "b": {"unet": 0.75, "text_encoder": 0.0}},
        ),
        (
            {"a": 1.0, "b": {"unet": 3.0, "text_encoder": 1.0}},
            {"a": {"unet": 0.25, "text_encoder": 0.5}, "b": {"unet": 0.75, "text_encoder": 0.5}},
        ),
    ],
)
def test_nla_divides_by_the_sum_of_each_part(
    weights: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert Normalised().weigh(weights) == expected


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ({"a": 1.0, "b": -1.0}, "LoRAs"),
        ({"a": -1.0}, "LoRAs"),
        ({"a": {"unet": 1.0, "text_encoder": -1.0}}, "text_encoder"),
        ({"a": float("nan")}, "nan"),
    ],
)
def test_nla_refuses_weights_without_a_sum(weights: dict[str, Any], word: str) -> None:
    with pytest.raises(ComposerError, match=word):
        Normalised().weigh(weights)
