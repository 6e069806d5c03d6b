"""The exact weighted sum."""

from __future__ import annotations

from collections.abc import Mapping

from composer.fusions.registry import Fusion, Weight


def weigh(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """W + sum_i w_i dW_i (MoLE, equation 1, with weights): the user's weights as they are."""
    return dict(weights)


WEIGHTED = Fusion(
    name="weighted",
    title="Weighted sum",
    paper="https://arxiv.org/abs/2404.13628",
    description="Each LoRA is added with its own weight, exactly as other programs do it.",
    weigh=weigh,
)
