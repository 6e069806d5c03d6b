"""Normalised linear arithmetic composition, the baseline of the MoLE paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from composer.errors import ComposerError
from composer.fusions.registry import Fusion, Weight


def weigh(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """W + sum_i w_i dW_i with sum_i w_i = 1 (MoLE, equation 2): weights divided by their sum.

    Each part of the model is normalised apart. A part whose weights are all 0 stays silent.

    Raises:
        ComposerError: weights that sum to zero or less.
    """
    parts = sorted({part for weight in weights.values() for part in _parts(weight)})
    if not parts:
        whole = _normalised({name: _number(weight) for name, weight in weights.items()}, "LoRAs")
        return {**whole}
    by_part = {
        part: _normalised({name: _number(weight, part) for name, weight in weights.items()}, part)
        for part in parts
    }
    return {name: {part: by_part[part][name] for part in parts} for name in weights}


def _parts(weight: Weight) -> Iterable[str]:
    return weight if isinstance(weight, Mapping) else ()


def _number(weight: Weight, part: str = "") -> float:
    return weight.get(part, 0.0) if isinstance(weight, Mapping) else weight


def _normalised(weights: Mapping[str, float], of_what: str) -> dict[str, float]:
    if not any(weights.values()):
        return dict(weights)
    total = sum(weights.values())
    if not total > 0:
        raise ComposerError(
            f"The weights of the {of_what} sum to {total:g}, and cannot be made to sum to 1. Give "
            "weights above 0, or choose the weighted sum."
        )
    return {name: weight / total for name, weight in weights.items()}


NLA = Fusion(
    name="nla",
    title="Normalised sum (NLA)",
    paper="https://arxiv.org/abs/2404.13628",
    description="As the weighted sum, with the weights scaled to sum to 1: never too strong, but "
    "each LoRA gets weaker as more join.",
    weigh=weigh,
)
