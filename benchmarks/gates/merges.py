"""Learned gates against weighted merges of the same LoRAs: is every named element right?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gates.files import trained
from benchmarks.shared.options import options, parser
from benchmarks.shared.pictures import Studio
from benchmarks.shared.results import Row
from benchmarks.shared.sets import (
    KINDS,
    SHOWN,
    first_of,
    judging,
    placed,
    row,
    scenes_of,
    sets_of,
    title_of,
    tuned,
    weighed,
)
from composer.evaluation.sheets import contact_sheet
from composer.evaluation.tuning import GRID
from toybox.measure import Judged

NAME = "gates.merges"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train gates, tune merges on other prompts, and compare on unseen ones."""
    asked = parser(NAME, __doc__ or "", count=200, what="pictures of each kind and way")
    asked.add_argument("--sets", type=int, default=2, help="of each kind (%(default)s)")
    asked.add_argument("--tuning", type=int, default=16, help="pictures of each point of the grid")
    asked.add_argument("--kinds", nargs="*", default=(), help='such as "character+style"')
    asked.add_argument("--learned", nargs="*", default=(), help="kinds that gates are trained for")
    asked.add_argument("--tuned-regions", nargs="*", default=(), help="kinds to tune them for")
    asked.add_argument("--gates", type=Path, help="folder of the gate files")
    asked.add_argument("--keep-weights", type=Path, help="folder to write the tuned weights into")
    given = asked.parse_args(arguments)
    setup = options(NAME, given, arguments)
    folder = given.gates or setup.cache.parent / "gates"
    studio = Studio(setup)
    elements = studio.elements()
    rows: list[Row] = []
    shown: list[Judged] = []
    for kinds in KINDS:
        chosen = sets_of(elements, kinds, given.sets)
        if not chosen or (given.kinds and "+".join(kinds) not in given.kinds):
            continue
        print(f"{title_of(kinds)}: {[[e.name for e in some] for some in chosen]}", flush=True)
        wanted = "+".join(kinds) in given.learned
        gates = {some: trained(studio, folder, some) for some in chosen if wanted}
        best = {some: tuned(studio.judge, some, given.tuning) for some in chosen}
        wanted = "+".join(kinds) in given.tuned_regions
        strong = {s: tuned(studio.judge, s, given.tuning, placed) for s in chosen if wanted}
        if given.keep_weights is not None:
            for one in best.values():
                one.write(given.keep_weights, studio)
        count = len(kinds)

        judged = judging(studio.judge, scenes_of(chosen, setup.count))
        average = judged(lambda some, case: weighed(case, some, [1 / len(some)] * len(some)))
        whole = judged(lambda some, case: weighed(case, some, [1.0] * len(some)))
        by_grid = judged(lambda some, case: weighed(case, some, best[some].weights))  # noqa: B023
        regions = judged(lambda some, case: placed(case, some))
        ways = [whole, by_grid, regions]
        rows += [
            row(kinds, f"average (weights 1/{count})", average, by_grid),
            row(kinds, "sum, weights 1", whole, by_grid),
            row(
                kinds,
                "sum, weights tuned by grid",
                by_grid,
                weights="; ".join(str(one) for one in best.values()),
            ),
            row(kinds, "trigger regions", regions, by_grid),
        ]
        if strong:
            stronger = judged(lambda some, case: placed(case, some, strong[some].weights))  # noqa: B023
            weights = "; ".join(str(one) for one in strong.values())
            way = "trigger regions, weights tuned by grid"
            rows.append(row(kinds, way, stronger, by_grid, weights=weights))
            ways.append(stronger)
        if gates:
            gated = judged(lambda some, case: dataclasses.replace(case, gates=gates[some]))  # noqa: B023
            rows.append(row(kinds, "learned gates", gated, by_grid))
            ways.append(gated)
        for way in ways:
            shown += first_of(way)
    notes = [
        "A picture counts if the oracle finds every named element where the prompt puts it. For "
        "each set of LoRAs, the tuned ways have the weights of a grid "
        f"({', '.join(f'{w:g}' for w in GRID)} for each LoRA) that were best on other prompts and "
        "seeds. The reaches of trigger regions are the same for all sets and were chosen on other "
        "prompts. Learned gates have the default settings, in the fastest precision, and were "
        "trained on drafted prompts. No training and no tuning used the prompts or seeds of these "
        "tables, and no training the oracle. Gains are paired, picture by picture. The first "
        "pictures, in each kind a row for each way: the sum at weights 1, the tuned sum, the "
        "regions (the tuned regions, the gates):",
        setup.save_sheet(NAME, contact_sheet([j.cell() for j in shown], columns=SHOWN)),
    ]
    setup.publish("Learned gates and weighted merges", rows, notes, sets=given.sets)


if __name__ == "__main__":
    main()
