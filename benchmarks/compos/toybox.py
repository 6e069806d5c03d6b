"""Every way of fusing on sets of two to five LoRAs, one of each kind and always a character.

The shipped world's mirror of ComposLoRA (arXiv 2402.16843), judged by the oracle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from statistics import fmean

from benchmarks.compos.figures import (
    ALL,
    BY_KIND,
    FUSING,
    GAIN,
    KEPT,
    LORAS,
    PASSES,
    RIGHT,
    SECONDS,
    SOURCE,
    draw,
    size_table,
)
from benchmarks.shared.intervals import interval_columns, share_columns
from benchmarks.shared.options import Options, options, parser
from benchmarks.shared.pictures import Case, Cost, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.scenes import element_heads, fits
from benchmarks.shared.sets import Set, cases, in_turn, sets_of, weighed
from benchmarks.shared.ways import ALONE_TITLE, BARE_TITLE, read_ways, title_of_way
from composer.errors import ComposerError
from composer.evaluation.intervals import bootstrap_mean
from composer.evaluation.sheets import Cell, contact_sheet
from composer.experts.library import GATES_FOLDER
from composer.fusions import Gates, Sum
from composer.fusions.gate_file import read_facts
from composer.fusions.registry import PLAIN, read_recipe
from composer.studio.axes import BARE
from toybox.measure import Judged
from toybox.world import Element

NAME = SOURCE
OTHERS = ("clothing", "style", "background", "object")
"""The kinds of which a set has one at most, beside its character."""
WAYS = (BARE, *(recipe.key for recipe in PLAIN), Gates.kind)
"""By the keys of the recipes; `BARE` is no LoRA at all, the prompt alone."""
MOST_ALONE = 20
"""Prompts, at most, with which each LoRA is tried alone."""
PURPOSE, SEED = "compos", 500_000
COLUMNS = 6  # of the sheet
Files = Mapping[frozenset[str], Path]
"""Gate files by the hashes of their LoRAs' tensors."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the oracle said of one picture of a set.

    elements: of each in the set's order, whether it is right. whole: the whole picture.
    cost: None where it was not measured.
    """

    elements: tuple[bool, ...]
    whole: bool
    cost: Cost | None

    @property
    def share(self) -> float:
        """Of the named elements, how many are right."""
        return fmean(self.elements)


Answers = Mapping[Set, Sequence[Answer]]
"""Of one way: of each set that it can fuse, one answer for each seed."""


def chosen_sets(elements: Sequence[Element], most: int | None = None) -> tuple[list[Set], int]:
    """The sets, `most` at most, and how many a picture has no room for.

    Drawn by a fixed random state, evenly over the sizes, over the kinds within a size and over the
    elements within the kinds; fewer are the first of more.
    """
    tight = 0

    def with_room(kinds: tuple[str, ...]) -> Iterator[Set]:
        nonlocal tight
        every = sets_of(elements, kinds, len(elements) ** len(kinds), order=PURPOSE)
        found = [some for some in every if fits(some, dressed=True)]
        tight += len(every) - len(found)
        return iter(found)

    by_size = [
        in_turn([with_room(("character", *more)) for more in combinations(OTHERS, size - 1)])
        for size in LORAS
    ]
    every = list(in_turn(by_size))
    return every[:most], tight


def fused(case: Case, some: Set, way: str, gates: Path | None) -> Case | None:
    """The case with this set fused so; None if the way is not for so many LoRAs, or needs gates
    that are not there."""
    if way == BARE:
        return case
    if way == Gates.kind:
        return gates and dataclasses.replace(case, gates=gates)
    if read_recipe(way).exactly not in (0, len(some)):
        return None
    return dataclasses.replace(weighed(case, some, [1.0] * len(some)), fusion=way)


def gate_files(folder: Path, model_hash: str) -> Files:
    """Those in a folder that are for this model."""
    facts = {path: read_facts(path) for path in sorted(folder.glob("*.safetensors"))}
    return {
        frozenset(expert.tensor_hash for expert in found.experts): path
        for path, found in facts.items()
        if found.model_hash == model_hash
    }


def seeds_of(case: Case, count: int) -> list[Case]:
    """The case with `count` seeds."""
    return [dataclasses.replace(case, seed=case.seed + number) for number in range(count)]


def alone_cases(chosen: Iterable[Set], count: int) -> dict[Element, list[Case]]:
    """Each element of the sets by itself: as many prompts as sets hold it, `MOST_ALONE` at most,
    with `count` seeds each."""
    held: dict[Element, int] = {}
    for some in chosen:
        for element in some:
            held[element] = min(held.get(element, 0) + 1, MOST_ALONE)
    return {
        element: [
            weighed(seeded, (element,), [1.0])
            for case in cases((element,), prompts, PURPOSE, SEED)
            for seeded in seeds_of(case, count)
        ]
        for element, prompts in held.items()
    }


def rows_of(
    found: Mapping[str, Answers], alone: Mapping[Element, Sequence[Answer]]
) -> Iterator[Row]:
    """The tables: over all sets, by the number of LoRAs, and by the kind of element.

    found: by way, in the order of the rows.
    """
    right_alone = {e: fmean(one.share for one in some) for e, some in alone.items()}
    plain = found.get(Sum.kind, {})
    tables: list[tuple[str, tuple[int, ...]]] = [(ALL, tuple(LORAS))]
    tables += [(size_table(size), (size,)) for size in LORAS]
    for table, sizes in tables:
        for way, answers in found.items():
            some = {one: given for one, given in answers.items() if len(one) in sizes}
            if some:
                yield {"table": table, **_row(way, some, plain, right_alone)}
    for way, answers in found.items():
        if answers:
            yield _kinds_row(title_of_way(way), answers)
    yield _kinds_row(ALONE_TITLE, {(element,): some for element, some in alone.items()})


def _row(
    way: str, answers: Answers, plain: Answers, right_alone: Mapping[Element, float]
) -> dict[str, str | int | float | None]:
    every = [one for some in answers.values() for one in some]
    expected = sum(right_alone[e] * len(given) for some, given in answers.items() for e in some)
    shares = [fmean(one.share for one in given) for given in answers.values()]
    row: dict[str, str | int | float | None] = {
        "fusion": title_of_way(way),
        "sets": len(answers),
        "n": len(every),
        **interval_columns("elements right", bootstrap_mean(shares)),
        KEPT: round(sum(sum(one.elements) for one in every) / expected, 3) if expected else None,
        **share_columns(RIGHT, [all(one.elements) for one in every]),
        **share_columns("whole picture right", [one.whole for one in every]),
    }
    if answers.keys() <= plain.keys():
        gains = [
            100 * (fmean(map(_all, given)) - fmean(map(_all, plain[some])))
            for some, given in answers.items()
        ]
        row |= interval_columns(GAIN, bootstrap_mean(gains))
    costs = [one.cost for one in every if one.cost is not None]
    if costs:
        row[PASSES] = round(fmean(cost.passes for cost in costs), 2)
        row[FUSING] = round(fmean(cost.setup for cost in costs), 3)
        row[SECONDS] = round(fmean(cost.seconds for cost in costs), 3)
    return row


def _all(one: Answer) -> bool:
    return all(one.elements)


def _kinds_row(title: str, answers: Answers) -> Row:
    """How often each kind of element is right, over all sets."""
    right: dict[str, list[bool]] = {}
    for some, given in answers.items():
        for place, element in enumerate(some):
            right.setdefault(element.kind, []).extend(one.elements[place] for one in given)
    row: dict[str, str | int | float | None] = {"table": BY_KIND, "fusion": title}
    for kind in ("character", *OTHERS):
        if kind in right:
            row |= share_columns(f"{kind} right", right[kind])
    return row


def answers_of(
    studio: Studio, some: Set, pictures: Iterable[Case], judged: Iterable[Judged]
) -> list[Answer]:
    """What is kept of the judgement of pictures of this set."""
    return [
        Answer(
            elements=tuple(j.right(element_heads(case.scene, e)) for e in some),
            whole=j.right(),
            cost=studio.cost(case),
        )
        for case, j in zip(pictures, judged, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make all pictures that are not there yet, judge them, and write results and figures."""
    asked = parser(NAME, __doc__ or "", count=3, what="seeds of each set and way")
    asked.add_argument("--sets", type=int, help="so many, evenly over their sizes (default: all)")
    asked.add_argument(
        "--ways", default="", help="such as weighted,ties:density=0.3 (default: all)"
    )
    asked.add_argument("--gates", type=Path, help="folder of the gate files (default: the LoRAs')")
    given = asked.parse_args(arguments)
    ways = read_ways(given.ways, WAYS)
    for name in ("sets", "count"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise ComposerError(f"--{name} is {getattr(given, name)}: give at least 1.")
    setup = options(NAME, given, arguments)
    studio = Studio(setup)
    chosen, tight = chosen_sets(studio.elements(), given.sets)
    if not chosen:
        raise ComposerError(f"{setup.loras} has no character beside another LoRA: add some.")
    gates = gate_files(given.gates or setup.loras / GATES_FOLDER, studio.model.hash)
    made = {some: _cases(studio, some, ways, gates, setup.count) for some in chosen}
    alone = alone_cases(chosen, setup.count)
    every = [case for by_way in made.values() for one in by_way.values() for case in one]
    every += [case for one in alone.values() for case in one]
    print(
        f"{NAME}: {len(chosen)} sets of {len(ways)} ways, {len(every)} pictures; "
        f"{tight} sets that no picture has room for are left out",
        flush=True,
    )
    refused: dict[tuple[object, ...], str] = {}
    studio.make(every, refused)
    reasons: dict[str, list[str]] = {}
    for by_way in made.values():
        for way, one in tuple(by_way.items()):
            if one[0].fused in refused:
                reasons.setdefault(way, []).append(refused[one[0].fused])
                del by_way[way]
    found: dict[str, dict[Set, list[Answer]]] = {way: {} for way in ways}
    shown: list[Cell] = []
    to_show = next((some for some in chosen if len(some) == 3), chosen[0])
    for some, by_way in made.items():
        judged = iter(studio.judge([case for one in by_way.values() for case in one]))
        for way, one in by_way.items():
            own = list(islice(judged, len(one)))
            found[way][some] = answers_of(studio, some, one, own)
            if some == to_show:
                shown.append(_cell(way, own[0]))
    by_itself = {
        taught: answers_of(studio, (taught,), one, studio.judge(one))
        for taught, one in alone.items()
    }
    rows = list(rows_of(found, by_itself))
    setup.publish(
        f"Sets of {LORAS[0]} to {LORAS[-1]} LoRAs, fused in every way",
        rows,
        [*_notes(setup, rows, shown, tight), *_refusals(reasons)],
        sets=len(chosen),
    )


def _cases(
    studio: Studio, some: Set, ways: Iterable[str], gates: Files, count: int
) -> dict[str, list[Case]]:
    """By way, the set's prompt with every seed."""
    (case,) = cases(some, 1, PURPOSE, SEED, dressed=True)
    hashes = frozenset(studio.expert(e.name).tensor_hash for e in some if gates)
    by_way = {way: fused(case, some, way, gates.get(hashes)) for way in ways}
    return {way: seeds_of(one, count) for way, one in by_way.items() if one is not None}


def _cell(way: str, judged: Judged) -> Cell:
    cell = judged.cell()
    _, *seen = cell.caption.split("\n")
    return dataclasses.replace(cell, caption="\n".join([title_of_way(way), *seen]))


def _refusals(reasons: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Of each way that refused sets, how many and why, in the words of the first."""
    for way, words in reasons.items():
        yield f"{title_of_way(way)} refuses {len(words)} of the sets: {words[0]}"


def _notes(setup: Options, rows: Sequence[Row], shown: Sequence[Cell], tight: int) -> Iterable[str]:
    room = f" {tight} sets have more figures than a picture has room for, and are left out."
    yield (
        "As ComposLoRA ([arXiv 2402.16843](https://arxiv.org/abs/2402.16843)) asks: every set has "
        "one character and at most one piece of clothing, style, background and object, each with "
        "its own LoRA at weight 1, every method with its usual parameters, and one prompt that "
        "names all of the set. A character wears the clothing if it can; else an animal beside it "
        f"does. Each picture is made with {setup.count} seeds, the same for all ways."
        + (room if tight else "")
    )
    yield (
        "*Elements right*: of the elements that a prompt names, how many are right, each where the "
        "prompt puts it; its interval, and that of the gain, are over sets. *Kept*: that share "
        "beside that of each LoRA alone, in prompts that name it alone. *Gain*: of the pictures "
        "whose named elements are all right, over the weighted sum of the same sets and seeds. "
        "*Passes* are rows of the U-Net, as many times as one fused model's. *Fusing*: seconds "
        "until the LoRAs are in the model, once for all pictures of a set. "
        f"*{BARE_TITLE}*: the prompt alone. Learned gates are tried on the sets that have a file "
        "of gates. MixLoRA has experts of its own, and takes no part."
    )
    for name, figure in draw(rows).items():
        yield setup.save_sheet(name, figure)
    if shown:
        yield "One of the sets, with the first seed, by every way:"
        sheet = contact_sheet(shown, columns=COLUMNS)
        yield setup.save_sheet(NAME, sheet)


if __name__ == "__main__":
    main()
