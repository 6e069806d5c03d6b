"""The best weights of a weighted sum of LoRAs, by trying a grid of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import ClassVar

import numpy as np
from PIL import Image

from composer.diffusion.clip import Clip
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.evaluation.sampling import Sampling, Shot, sample
from composer.experts import Expert
from composer.experts.triggers import without_words
from composer.fusions.tuned_weights import MOST_LORAS, TunedLora, TunedWeights
from composer.mixture import attach
from composer.settings import Settings, setting

GRID = (0.8, 1.0, 1.2, 1.4)
"""Sums of a shipped pair are best at one of these; below, LoRAs are too faint to be seen."""

TEMPERATURE = 10.0
DOUBT = 2.0  # standard errors within which two points count as equal

Weights = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Scores pictures by their prompts; higher is better. `name` is for people.

    score: of each picture, each with its prompt.
    """

    name: str
    score: Callable[[Sequence[Image.Image], Sequence[str]], Sequence[float]]


def clip_judge(clip: Clip, triggers: Sequence[str]) -> Judge:
    """How sure CLIP is that a picture shows all of its prompt, and not the prompt without the words
    of one of the LoRAs:

        p = softmax over k of (T cos(picture, prompt_k))_0

    with prompt_0 the whole prompt, prompt_k the same without the words of LoRA k, and T = 10. The
    plain cosine is blind to what is small in a picture: a sum that loses the hat may score best.

    triggers: the words of each LoRA.
    """

    def score(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        seen = clip.look(pictures)
        found: list[float] = []
        for picture, prompt in zip(seen, prompts, strict=True):
            choices = [prompt, *prompts_without(prompt, triggers)]
            cosines = clip.text(choices) @ picture
            found.append(float((TEMPERATURE * cosines).softmax(0)[0]))
        return found

    return Judge(name=clip.name, score=score)


def prompts_without(prompt: str, triggers: Sequence[str]) -> list[str]:
    """The prompt without the words of each LoRA that it names, one at a time.

    Raises:
        ComposerError: it names none of them.
    """
    without = (without_words(prompt, trigger) for trigger in triggers)
    found = [rest for rest in without if rest is not None]
    if not found:
        raise ComposerError(
            f"The prompt {prompt!r} holds the trigger words of none of these LoRAs, so CLIP cannot "
            f"tell whether they are seen: use the words {', '.join(filter(None, triggers))!r}."
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One point of the grid when its pictures are judged, and their mean score. `found` is there
    after the last one."""

    weights: Weights
    score: float
    step: int
    total: int
    found: TunedWeights | None = None


@dataclass(frozen=True, kw_only=True)
class Tuning(Settings):
    """What a search of weights is asked to do.

    prompts: that name all LoRAs; one picture of each at every point of the grid.
    grid: the weights tried for each LoRA. With three LoRAs or more, only those points at which
        all have one weight, or one LoRA another than the rest.
    seed: of the first prompt's picture; the next has the next seed, the same at every point.
    """

    noun: ClassVar[str] = "settings of a search"

    prompts: tuple[str, ...]
    grid: tuple[float, ...] = GRID
    seed: int = setting(0, at_least=0, help="Of the first picture; the others count up.")
    sampling: Sampling = setting(factory=Sampling)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompts:
            raise ComposerError("There is no prompt to tune the weights on: give one or more.")
        if len(set(self.grid)) < 2 or not all(0 < weight <= 10 for weight in self.grid):
            raise ComposerError("The grid needs two weights or more, above 0 and up to 10.")


def points_of(grid: Sequence[float], count: int) -> tuple[Weights, ...]:
    """The weights of `count` LoRAs that are tried; every combination for one or two of them."""
    every = product(dict.fromkeys(grid), repeat=count)
    if count <= 2:
        return tuple(every)
    alike = ((w,) * count for w in dict.fromkeys(grid))
    apart = (
        (rest,) * place + (one,) + (rest,) * (count - place - 1)
        for rest in dict.fromkeys(grid)
        for one in dict.fromkeys(grid)
        for place in range(count)
        if one != rest
    )
    return tuple(sorted({*alike, *apart}))


def tune_weights(
    model: Model, experts: Sequence[Expert], judge: Judge, tuning: Tuning
) -> Iterator[Tried]:
    """Try every point of the grid; the last report brings the best, as `best_of` chooses it.

    The model is as before whenever the iterator ends or is closed.

    Raises:
        ComposerError: there are no two LoRAs or too many of them, or one does not fit the model.
    """
    if not 2 <= len(experts) <= MOST_LORAS:
        raise ComposerError(
            f"Weights of {len(experts)} LoRAs cannot be tuned: choose 2 to {MOST_LORAS}."
        )
    names = [expert.name for expert in experts]
    ones = (1.0,) * len(names)
    points = list(dict.fromkeys((ones, *points_of(tuning.grid, len(names)))))
    shots = [
        Shot(prompt=prompt, seed=tuning.seed + number)
        for number, prompt in enumerate(tuning.prompts)
    ]
    scores: dict[Weights, Sequence[float]] = {}
    with attach(model.models, {expert.name: expert.sites for expert in experts}) as mixture:
        for step, weights in enumerate(points, start=1):
            mixture.set_weights(dict(zip(names, weights, strict=True)))
            pictures = list(sample(model, shots, tuning.sampling))
            scores[weights] = judge.score(pictures, tuning.prompts)
            found = None
            if step == len(points):
                found = _found(model, experts, judge, tuning, scores)
            yield Tried(
                weights=weights,
                score=fmean(scores[weights]),
                step=step,
                total=len(points),
                found=found,
            )


def best_of(scores: Mapping[Weights, Sequence[float]]) -> Weights:
    """The weights nearest to 1 among those that cannot be told from the best.

    Scores are compared picture by picture; a mean difference within two standard errors is chance.

    scores: of each picture, the same pictures for all weights.
    """
    top = max(scores, key=lambda weights: sum(scores[weights]))
    best = np.asarray(scores[top])
    equal = [top]
    for weights, found in scores.items():
        loss = best - np.asarray(found)
        error = float(loss.std(ddof=1)) / len(loss) ** 0.5 if len(loss) > 1 else 0.0
        if float(loss.mean()) <= DOUBT * error:
            equal.append(weights)
    return min(equal, key=lambda w: (sum((x - 1) ** 2 for x in w), -sum(scores[w])))


def _found(
    model: Model,
    experts: Sequence[Expert],
    judge: Judge,
    tuning: Tuning,
    scores: Mapping[Weights, Sequence[float]],
) -> TunedWeights:
    best = best_of(scores)
    return TunedWeights(
        loras=tuple(
            TunedLora(name=expert.name, tensor_hash=expert.tensor_hash, weight=weight)
            for expert, weight in zip(experts, best, strict=True)
        ),
        model=model.name,
        model_hash=model.hash,
        judge=judge.name,
        pictures=len(tuning.prompts),
        points=len(scores),
        grid=tuning.grid,
        score=fmean(scores[best]),
        score_of_ones=fmean(scores[(1.0,) * len(experts)]),
    )
