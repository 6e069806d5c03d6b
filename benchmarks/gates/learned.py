"""Learned gates against the tuned sum, both with weights and strengths of the same grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.gates.files import trained
from benchmarks.shared.options import options, parser
from benchmarks.shared.pictures import Case, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.sets import (
    KINDS,
    SHOWN,
    Set,
    first_of,
    judging,
    row,
    scenes_of,
    sets_of,
    tuned,
    weighed,
)
from composer.evaluation.sheets import contact_sheet
from composer.evaluation.tuning import GRID
from composer.experts.library import WEIGHTS_FOLDER
from composer.fusions.tuned_weights import file_name_for, read_tuned_weights
from toybox.measure import Judged

NAME = "gates.learned"
LEFT = ("clothing+clothing", "clothing+style", "character+style+background", "character+clothing")
"""The kinds in which the tuned sum leaves something to be won."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train gates, tune their strengths on other prompts, and compare on unseen ones."""
    asked = parser(NAME, __doc__ or "", count=200, what="pictures of each kind and way")
    asked.add_argument("--sets", type=int, default=2, help="of each kind (%(default)s)")
    asked.add_argument("--tuning", type=int, default=10, help="pictures of each point of the grid")
    asked.add_argument("--kinds", nargs="*", default=LEFT, help='such as "character+style"')
    asked.add_argument("--gates", type=Path, help="folder of the gate files")
    given = asked.parse_args(arguments)
    setup = options(NAME, given, arguments)
    folder = given.gates or setup.cache.parent / "gates"
    studio = Studio(setup)
    rows: list[Row] = []
    shown: list[Judged] = []
    for kinds in KINDS:
        chosen = sets_of(studio.elements(), kinds, given.sets)
        if not chosen or "+".join(kinds) not in given.kinds:
            continue
        print(f"{' + '.join(kinds)}: {[[e.name for e in some] for some in chosen]}", flush=True)
        gates = {some: trained(studio, folder, some) for some in chosen}

        def strong(case: Case, some: Set, weights: Sequence[float]) -> Case:
            named = tuple((e.name, w) for e, w in zip(some, weights, strict=True))
            return dataclasses.replace(case, gates=gates[some], strengths=named)  # noqa: B023

        sums = {some: _known(setup.loras, some) for some in chosen}
        stronger = {some: tuned(studio.judge, some, given.tuning, strong) for some in chosen}
        judged = judging(studio.judge, scenes_of(chosen, setup.count))
        best = judged(lambda some, case: weighed(case, some, sums[some]))  # noqa: B023
        whole = judged(lambda some, case: weighed(case, some, [1.0] * len(some)))
        plain = judged(lambda some, case: dataclasses.replace(case, gates=gates[some]))  # noqa: B023
        strengthened = judged(lambda some, case: strong(case, some, stronger[some].weights))  # noqa: B023
        rows += [
            row(kinds, "sum, weights 1", whole, best),
            row(kinds, "sum, weights tuned by grid", best, weights=_words(sums)),
            row(kinds, "learned gates", plain, best),
            row(
                kinds,
                "learned gates, strengths tuned by grid",
                strengthened,
                best,
                weights=_words({some: one.weights for some, one in stronger.items()}),
            ),
        ]
        for way in (best, plain, strengthened):
            shown += first_of(way)
    notes = [
        "A picture counts if the oracle finds every named element where the prompt puts it. Gates "
        "have the default settings, in the fastest precision, and were trained on drafted prompts. "
        "For each set of LoRAs, both tuned ways have the best point of one grid "
        f"({', '.join(f'{w:g}' for w in GRID)} for each LoRA): its weight in the sum, or its "
        "strength, which multiplies the weight that the gates give it. The best is that of "
        f"{given.tuning} pictures of other prompts and seeds; the sum's weights are those that "
        "lie beside the LoRAs, found by `benchmarks.gates.merges`. No training and no tuning "
        "used the prompts or seeds of these tables, and no training the oracle. Gains are paired, "
        "picture by picture. The first pictures, in each kind a row for each way: the tuned sum, "
        "the gates, and the gates with tuned strengths:",
        setup.save_sheet(NAME, contact_sheet([j.cell() for j in shown], columns=SHOWN)),
    ]
    setup.publish("Learned gates against the tuned sum", rows, notes, sets=given.sets)


def _known(loras: Path, some: Set) -> tuple[float, ...]:
    """The weights of the sum that `benchmarks.gates.merges --keep-weights` found."""
    path = loras / WEIGHTS_FOLDER / file_name_for(e.file for e in some)
    weights = read_tuned_weights(path).weights()
    return tuple(weights[e.file] for e in some)


def _words(best: Mapping[Set, Sequence[float]]) -> str:
    return "; ".join(
        " + ".join(f"{e.name} {w:g}" for e, w in zip(some, weights, strict=True))
        for some, weights in best.items()
    )


if __name__ == "__main__":
    main()
