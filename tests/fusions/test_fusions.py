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
    Regions,
    Sum,
    read_recipe,
    recorded_recipe,
)


def test_every_recipe_explains_itself_and_comes_back_by_its_key() -> None:
    assert [recipe.key for recipe in PLAIN] == ["weighted", "nla", "regions"]
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
