"""What each part of a gate and of its training is worth: trained without it, or otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gates.curves import curves_of, plot
from benchmarks.gates.files import trained
from benchmarks.shared.options import options, parser
from benchmarks.shared.pictures import Case, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.sets import Set, cases, placed, row, sets_of, weighed
from composer.fusions.gate_file import read_gates
from toybox.measure import Judged

NAME = "gates.ablations"
KINDS = ("clothing", "style")
Changes = Mapping[str, Any]
Tables = Mapping[str, Mapping[str, Changes]]
"""Changes of the recommended training by variant, by table."""

TABLES: Tables = {
    "The recommended gate, with one thing changed": {
        "as recommended": {},
        "weights count where each is called to": {"input": "placed"},
        "gates in the last third alone": {"depth": 0.65},
        "each LoRA judges alone": {"company": "nobody"},
        "one gate for each layer": {"granularity": "layer"},
    },
}


def facts(file: Path) -> Row:
    """What the training of a gate file ended with."""
    setup = read_gates(file).training
    loss, evenness = setup.get("losses", {}).get("loss"), setup.get("entropy")
    return {
        "loss": None if loss is None else round(loss, 4),
        "entropy": None if evenness is None else round(evenness, 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every variant on the same prompts and seeds, and judge their pictures."""
    run(NAME, __doc__ or "", "What each part of a gate is worth", TABLES, arguments)


def run(name: str, about: str, title: str, tables: Tables, arguments: Sequence[str] | None) -> None:
    """The same for any variants: their rows by table, and the curves of their trainings."""
    asked = parser(name, about, count=200, what="pictures of each variant")
    asked.add_argument("--sets", type=int, default=1, help="of LoRAs (%(default)s)")
    asked.add_argument("--optimiser-steps", type=int, default=100, help="(%(default)s)")
    asked.add_argument("--gates", type=Path, help="folder of the gate files")
    given = asked.parse_args(arguments)
    setup = options(name, given, arguments)
    folder = given.gates or setup.cache.parent / "gates"
    studio = Studio(setup)
    chosen = sets_of(studio.elements(), KINDS, given.sets)
    each = -(-setup.count // len(chosen))
    scenes = [(some, case) for some in chosen for case in cases(some, each, "ablation", 700_000)]

    def judged(files: Mapping[Set, Path] | None, regions: bool = False) -> list[tuple[Set, Judged]]:
        def fused(some: Set, case: Case) -> Case:
            if files is not None:
                return dataclasses.replace(case, gates=files[some])
            return placed(case, some) if regions else weighed(case, some, [1.0] * len(some))

        made = studio.judge([fused(some, case) for some, case in scenes])
        return [(some, j) for (some, _), j in zip(scenes, made, strict=True)]

    def line(table: str, variant: str, found: list[tuple[Set, Judged]], more: Row) -> Row:
        values = row(KINDS, variant, found)
        return {"table": table, "variant": variant, **{k: values[k] for k in _kept(values)}, **more}

    beside = {
        "sum, weights 1 (no gate)": judged(None),
        "trigger regions": judged(None, regions=True),
    }
    rows: list[Row] = []
    curves: dict[str, dict[str, Path]] = {}
    for table, variants in tables.items():
        rows += [line(table, way, found, {}) for way, found in beside.items()]
        for variant, changes in variants.items():
            values = {"steps": given.optimiser_steps, **changes}
            files = {some: trained(studio, folder, some, **values) for some in chosen}
            first = files[chosen[0]]
            rows.append(line(table, variant, judged(files), facts(first)))
            curves.setdefault(table, {})[variant] = first
    names = ", ".join(" and ".join(e.name for e in some) for some in chosen)
    notes = [
        f"LoRAs: {names}. All variants learn from the same drafted prompts with the same seeds for "
        f"{given.optimiser_steps} steps. The loss is each objective's own, smoothed, at the end: "
        "what the judges miss, or CLIP's. Entropy is that of the gates' shares at the end: 1 is "
        "even, 0 is one expert everywhere. Prompts and seeds are unseen by any training. The "
        "losses as the trainings went:",
        setup.save_sheet(name, plot({t: curves_of(files) for t, files in curves.items()})),
    ]
    settings = {"optimiser steps": given.optimiser_steps}
    setup.publish(title, rows, notes, **settings, sets=given.sets)


def _kept(values: Row) -> list[str]:
    return [key for key in values if key not in ("table", "fusion")]


if __name__ == "__main__":
    main()
