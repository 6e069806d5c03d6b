"""LoRAHub: one weight for each LoRA, searched without gradients on a few examples (Huang et al.,
arXiv 2307.13269).

Minimises, over weights in [-1.5, 1.5] and from 0 on,

    mean cross-entropy of the answers' tokens + 0.05 mean_i |w_i|

The authors search by nevergrad's NGOpt; here it is CMA-ES, by Hansen's package `cma`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import cma
import numpy as np
import torch

from benchmarks.language.merges import merge_factors
from composer.errors import ComposerError
from composer.experts import Expert
from composer.language.batches import Batch, answer_loss, collate
from composer.language.gated import attach_loras
from composer.language.load import LanguageModel
from composer.language.records import Record
from composer.language.samples import encode, window_of
from composer.language.template import Template

Adding = Literal["changes", "factors"]
BOUND, PENALTY, STEP = 1.5, 0.05, 0.5


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search has found.

    weights: by LoRA. loss: their mean cross-entropy with the penalty. tries: how often the model
    was asked.
    """

    weights: Mapping[str, float]
    loss: float
    tries: int


def search(
    names: Sequence[str], loss: Callable[[Mapping[str, float]], float], *, tries: int, seed: int
) -> Searched:
    """The best weights of so many tries.

    loss: the mean cross-entropy with these weights, without the penalty.
    """
    if tries < 1:
        raise ComposerError(f"tries is {tries}: give 1 or more.")
    generator = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape)

    strategy: Any = cast(Any, cma).CMAEvolutionStrategy(
        np.zeros(len(names)),
        STEP,
        {
            "bounds": [-BOUND, BOUND],
            "randn": drawn,
            "seed": np.nan,  # NumPy's own generator is neither seeded nor drawn from
            "verbose": -9,
        },
    )
    best: Searched | None = None
    done = 0
    while done < tries:
        points = strategy.ask()
        worth: list[float] = []
        for point in points[: tries - done]:
            weights = dict(zip(names, map(float, point), strict=True))
            value = loss(weights) + PENALTY * float(np.abs(point).mean())
            worth.append(value if math.isfinite(value) else math.inf)
            done += 1
            if best is None or worth[-1] < best.loss:
                best = Searched(weights=weights, loss=value, tries=done)
        if len(worth) == len(points):
            strategy.tell(points, worth)
    assert best is not None
    return Searched(weights=best.weights, loss=best.loss, tries=done)


def lorahub(
    language: LanguageModel,
    experts: Sequence[Expert],
    records: Sequence[Record],
    *,
    adding: Adding = "changes",
    tries: int = 40,
    template: Template = "auto",
    seed: int = 0,
) -> Searched:
    """Search the weights of LoRAs on a few records; the model is as before when it is done.

    adding: "changes", sum_i w_i B_i A_i, or "factors" as published, see `merge_factors`.

    Raises:
        ComposerError: no records, or LoRAs that cannot be added up so.
    """
    if not records:
        raise ComposerError("There is nothing to search weights on: give some records.")
    if adding not in get_args(Adding):
        raise ComposerError(f"adding is {adding!r}: choose one of {', '.join(get_args(Adding))}.")
    window = window_of(language.model, language.tokenizer)
    encoder = language.start is not None
    samples = encode(records, language.tokenizer, window, template, encoder=encoder).samples
    batch = collate([[sample] for sample in samples], language.pad, start=language.start)
    names = [expert.name for expert in experts]
    if adding == "changes":
        with attach_loras(language.model, experts) as mixture:

            def summed(weights: Mapping[str, float]) -> float:
                mixture.set_weights(weights)
                return mean_loss(language, batch)

            return search(names, summed, tries=tries, seed=seed)

    def factored(weights: Mapping[str, float]) -> float:
        with attach_loras(language.model, [merge_factors(experts, weights)]):
            return mean_loss(language, batch)

    return search(names, factored, tries=tries, seed=seed)


@torch.no_grad()
def mean_loss(language: LanguageModel, batch: Batch) -> float:
    """The mean cross-entropy of the answers' tokens, in nats."""
    logits = cast(Any, language.model)(**batch.inputs(language.device)).logits
    return float(answer_loss(logits, batch.labels.to(language.device))) / batch.learnt
