"""Fusions: from the weights a user gives to those of the gate."""

from __future__ import annotations

from typing import Any

import pytest

from composer.errors import ComposerError
from composer.fusions import FUSIONS, Fusion


def test_registry_is_by_name_and_explains_itself() -> None:
    assert list(FUSIONS) == ["weighted", "nla", "regions"]
    for name, fusion in FUSIONS.items():
        assert isinstance(fusion, Fusion)
        assert fusion.name == name
        assert fusion.title and fusion.description.endswith(".")
        assert fusion.paper.startswith("https://")


@pytest.mark.parametrize(
    "weights", [{}, {"a": 0.8, "b": -2.0}, {"a": {"unet": 0.1, "text_encoder": 0.0}, "b": 1}]
)
def test_weighted_changes_nothing(weights: dict[str, Any]) -> None:
    assert FUSIONS["weighted"].weigh(weights) == weights


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
    assert FUSIONS["nla"].weigh(weights) == expected


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
        FUSIONS["nla"].weigh(weights)
