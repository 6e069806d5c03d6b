"""Which other LoRAs should be active while a LoRA judges: gates trained with and without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gates.files import trained
from benchmarks.shared.options import options, parser
from benchmarks.shared.pictures import Studio
from benchmarks.shared.results import Row
from benchmarks.shared.sets import KINDS, SHOWN, cases, first_of, judging, row, sets_of
from composer.evaluation.sheets import contact_sheet
from composer.training.gates.judges import companies
from composer.training.gates.settings import Company
from toybox.measure import Judged

NAME = "gates.company"
PROMPTS = "gate_company"  # decides which prompts are drawn
COMPARED = ("character+style", "clothing+style", "clothing+clothing", "character+style+background")
WAYS: dict[Company, str] = {
    "nobody": "each alone",
    "fitting": "beside all that fit (the default)",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train gates for each `--company`, and judge their pictures on the same unseen prompts."""
    asked = parser(NAME, __doc__ or "", count=200, what="pictures of each kind and company")
    asked.add_argument("--sets", type=int, default=2, help="of each kind (%(default)s)")
    asked.add_argument("--kinds", nargs="*", default=COMPARED, help='such as "character+style"')
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
        each = -(-setup.count // len(chosen))
        scenes = [(some, case) for some in chosen for case in cases(some, each, PROMPTS, 800_000)]
        judged = judging(studio.judge, scenes)
        before: set[object] = set()
        for company, way in WAYS.items():
            if (beside := companies(company, kinds)) in before:
                continue  # where none fits
            before.add(beside)
            gates = {some: trained(studio, folder, some, company=company) for some in chosen}
            made = judged(lambda some, case: dataclasses.replace(case, gates=gates[some]))  # noqa: B023
            rows.append(row(kinds, way, made))
            shown += first_of(made)
    notes = [
        "All gates have the default settings but for `--company`, and were trained on the same "
        "drafted prompts with the same seeds, once for each set of LoRAs. Where two rows would be "
        "the same training there is one. Prompts and seeds are unseen by any training, and those "
        "of no other table. The first pictures, row by row as in the tables:",
        setup.save_sheet(NAME, contact_sheet([j.cell() for j in shown], columns=SHOWN)),
    ]
    setup.publish("Judges alone and beside other LoRAs", rows, notes, sets=given.sets)


if __name__ == "__main__":
    main()
