"""Sets of LoRAs to be fused, the prompts that name all of a set, and rows of what came of it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import TypeVar

from benchmarks.shared.intervals import interval_columns, share_columns
from benchmarks.shared.pictures import Case, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.scenes import element_heads, scene_with
from composer.evaluation.intervals import bootstrap_mean
from composer.evaluation.tuning import GRID, points_of
from composer.fusions.tuned_weights import TunedLora, TunedWeights, file_name_for
from toybox.captions import plain_caption
from toybox.measure import Judged, unseen_prompt
from toybox.oracle import SLOTS
from toybox.world import Element

KINDS: tuple[tuple[str, ...], ...] = (
    ("character", "style"),
    ("character", "background"),
    ("character", "character"),
    ("character", "clothing"),
    ("clothing", "style"),
    ("clothing", "clothing"),
    ("character", "style", "background"),
    ("character", "clothing", "style"),
)
SHOWN = 4  # pictures of each kind and way on the sheet
Item = TypeVar("Item")
Set = tuple[Element, ...]
Judge = Callable[[Sequence[Case]], list[Judged]]
Fuse = Callable[[Case, Set, Sequence[float]], Case]
Way = list[tuple[Set, Judged]]
"""The pictures of one way of fusing, each with the LoRAs that its prompt calls."""


def sets_of(
    elements: Sequence[Element], kinds: tuple[str, ...], most: int, *, order: str = "sets"
) -> list[Set]:
    """Up to `most` sets of these kinds, drawn so that each element occurs about as often; `order`
    decides which come first."""
    by_kind = [[e for e in elements if e.kind == kind] for kind in kinds]
    alike = len(set(kinds)) == 1
    found: list[Set] = list(combinations(by_kind[0], len(kinds)) if alike else product(*by_kind))
    random.Random(f"{order} {kinds}").shuffle(found)
    used = dict.fromkeys((e.name for e in elements), 0)
    chosen: list[Set] = []
    while found and len(chosen) < most:
        one = min(found, key=lambda some: sum(used[e.name] for e in some))
        found.remove(one)
        chosen.append(one)
        for element in one:
            used[element.name] += 1
    return chosen


def in_turn(some: Iterable[Iterator[Item]]) -> Iterator[Item]:
    """One of each after the other, until all are used up."""
    left = list(some)
    while left:
        for one in tuple(left):
            try:
                yield next(one)
            except StopIteration:
                left.remove(one)


def cases(some: Set, count: int, purpose: str, seed: int, *, dressed: bool = False) -> list[Case]:
    """`count` prompts that call all of `some`; other prompts and seeds for each purpose.

    dressed: as for `scene_with`.
    """
    rng = random.Random(f"{purpose} of {' and '.join(e.name for e in some)}")
    made: list[Case] = []
    for index in range(count):
        scene = scene_with(some, rng, dressed=dressed)
        prompt = plain_caption(scene) if index % 2 == 0 else unseen_prompt(scene, rng)
        made.append(Case(scene=scene, prompt=prompt, seed=seed + index))
    return made


def weighed(case: Case, some: Set, weights: Sequence[float]) -> Case:
    """The case with the weighted sum of these LoRAs."""
    named = tuple((e.name, w) for e, w in zip(some, weights, strict=True))
    return dataclasses.replace(case, weights=named)


def placed(case: Case, some: Set, weights: Sequence[float] | None = None) -> Case:
    """The case with these LoRAs, each where its own words act; with weights of 1."""
    given = [1.0] * len(some) if weights is None else weights
    return dataclasses.replace(weighed(case, some, given), fusion="regions")


def named_right(j: Judged, some: Set) -> bool:
    """Whether every named element is right."""
    return all(j.right(element_heads(j.case.scene, element)) for element in some)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What the grid came to for one set of LoRAs: of `count` pictures at each of its points, at how
    many every named element is right, and the whole picture, by weights."""

    some: Set
    count: int
    right: Mapping[tuple[float, ...], tuple[int, int]]

    @property
    def weights(self) -> tuple[float, ...]:
        """The best; of equals the smallest."""
        return max(sorted(self.right), key=lambda weights: self.right[weights])

    def __str__(self) -> str:
        pairs = zip(self.some, self.weights, strict=True)
        return " + ".join(f"{element.name} {weight:g}" for element, weight in pairs)

    def write(self, folder: Path, studio: Studio) -> None:
        """Keep the weights where Compare finds them: beside the LoRAs."""
        loras = tuple(
            TunedLora(
                name=element.file,
                tensor_hash=studio.expert(element.name).tensor_hash,
                weight=weight,
            )
            for element, weight in zip(self.some, self.weights, strict=True)
        )
        folder.mkdir(parents=True, exist_ok=True)
        TunedWeights(
            loras=loras,
            model=studio.model.name,
            model_hash=studio.model.hash,
            judge="the oracle of the toybox",
            pictures=self.count,
            points=len(self.right),
            grid=GRID,
            score=self.right[self.weights][0] / self.count,
            score_of_ones=self.right[(1.0,) * len(self.some)][0] / self.count,
        ).write(folder / file_name_for(lora.name for lora in loras))


def tuned(judge: Judge, some: Set, count: int, fuse: Fuse = weighed) -> Tuned:
    """The weights of the grid with which most pictures of the tuning prompts are right."""
    tuning = cases(some, count, "tuning", 300_000)
    right: dict[tuple[float, ...], tuple[int, int]] = {}
    for weights in points_of(GRID, len(some)):
        judged = judge([fuse(case, some, weights) for case in tuning])
        right[weights] = sum(named_right(j, some) for j in judged), sum(j.right() for j in judged)
    best = Tuned(some=some, count=count, right=right)
    at_best = best.right[best.weights]
    print(f"tuned ({fuse.__name__}): {best}; right are {at_best} of {count}", flush=True)
    return best


def row(
    kinds: tuple[str, ...],
    way: str,
    judged: Sequence[tuple[Set, Judged]],
    against: Sequence[tuple[Set, Judged]] | None = None,
    **more: str,
) -> Row:
    """Each element's share, all named, the whole picture, and the gain over another way."""
    answers = [named_right(j, some) for some, j in judged]
    found: Row = {"table": title_of(kinds), "fusion": way, "n": len(judged), **more}
    alike = len(set(kinds)) == 1
    for place, kind in enumerate(kinds):
        right = [j.right(element_heads(j.case.scene, some[place])) for some, j in judged]
        label = f"{SLOTS[place] if alike else kind} right"
        found |= share_columns(label, right)
    found |= share_columns("all named right", answers)
    found |= share_columns("whole picture right", [j.right() for _, j in judged])
    if against is not None:
        before = [named_right(j, some) for some, j in against]
        gains = [100.0 * (int(a) - int(b)) for a, b in zip(answers, before, strict=True)]
        found |= interval_columns("gain over the tuned sum (points)", bootstrap_mean(gains))
    return found


def scenes_of(chosen: Sequence[Set], count: int) -> list[tuple[Set, Case]]:
    """The unseen prompts that all ways are compared on, `count` in all."""
    each = -(-count // len(chosen))
    return [(some, case) for some in chosen for case in cases(some, each, "test", 400_000)]


def judging(
    judge: Judge, scenes: Sequence[tuple[Set, Case]]
) -> Callable[[Callable[[Set, Case], Case]], Way]:
    """What judges a way of fusing: it is given how to fuse a case, and makes all of `scenes` so."""

    def judged(change: Callable[[Set, Case], Case]) -> Way:
        made = judge([change(some, case) for some, case in scenes])
        return [(some, j) for (some, _), j in zip(scenes, made, strict=True)]

    return judged


def first_of(way: Way) -> list[Judged]:
    """A few of its pictures for the sheet, not chosen."""
    return [j for _, j in way[:: max(len(way) // SHOWN, 1)][:SHOWN]]


def title_of(kinds: tuple[str, ...]) -> str:
    """Of the table of these kinds."""
    return " + ".join(kinds).capitalize()
