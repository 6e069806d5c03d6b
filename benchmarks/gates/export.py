"""Gates exported as one ordinary LoRA: how much of what they gain does it keep?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gates.files import trained
from benchmarks.shared.intervals import interval_columns, share_columns
from benchmarks.shared.options import options, parser
from benchmarks.shared.pictures import Case, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.sets import Set, cases, named_right, sets_of, weighed
from composer.evaluation.intervals import bootstrap_mean
from composer.evaluation.sheets import contact_sheet
from composer.experts import read_header
from composer.fusions.gate_file import read_gates
from composer.training.gates.export import export_gates
from composer.training.gates.settings import GateExport
from toybox.measure import Judged

NAME = "gates.export"
KINDS = (("character", "style"), ("character", "background"))
SHOWN = 4  # pictures of each kind and way on the sheet
KEPT = "gain over the average that is kept (×)"


def exported(studio: Studio, gates: Path) -> Path:
    """The LoRA of a gate file with the default settings, beside it; made when not there yet."""
    output = gates.with_name(f"{gates.stem}-lora.safetensors")
    if not output.exists():
        file = read_gates(gates)
        experts = [studio.expert(expert.name) for expert in file.experts]
        config = GateExport(output=output, gates=gates.stem)
        for report in export_gates(studio.model, experts, file, config):
            if report.exported is not None:
                print(f"{output.name}: loss {report.exported.loss:.3f}", flush=True)
    return output


def loss_of(lora: Path) -> float:
    """The loss of the export that its file records."""
    return float(json.loads(read_header(lora).metadata["composer.export"])["loss"])


def kept(average: float, gates: float, export: float) -> float | None:
    """The share of the gates' gain over the average merge; None where they gain nothing."""
    return (export - average) / (gates - average) if gates > average else None


def row(
    kinds: tuple[str, ...],
    way: str,
    judged: Sequence[tuple[Set, Judged]],
    against: Sequence[tuple[Set, Judged]],
) -> Row:
    """All named right, the whole picture, and the paired gain over another way."""
    answers = [named_right(j, some) for some, j in judged]
    before = [named_right(j, some) for some, j in against]
    found: Row = {"kinds": " + ".join(kinds), "way": way, "n": len(judged)}
    found |= share_columns("all named right", answers)
    found |= share_columns("whole picture right", [j.right() for _, j in judged])
    gains = [100.0 * (int(a) - int(b)) for a, b in zip(answers, before, strict=True)]
    found |= interval_columns("gain over the average (points)", bootstrap_mean(gains))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train gates, export them, and compare both with the merges on unseen prompts."""
    asked = parser(NAME, __doc__ or "", count=200, what="pictures of each kind and way")
    asked.add_argument("--sets", type=int, default=2, help="of each kind (%(default)s)")
    asked.add_argument("--gates", type=Path, help="folder of the gate files")
    given = asked.parse_args(arguments)
    setup = options(NAME, given, arguments)
    folder = given.gates or setup.cache.parent / "gates"
    studio = Studio(setup)
    elements = studio.elements()
    rows: list[Row] = []
    shown: list[Judged] = []
    for kinds in KINDS:
        chosen = sets_of(elements, kinds, given.sets)
        if not chosen:
            print(f"{' + '.join(kinds)} is left out: there is no LoRA of each", flush=True)
            continue
        each = -(-setup.count // len(chosen))
        scenes = [(some, case) for some in chosen for case in cases(some, each, "test", 400_000)]
        files = {some: trained(studio, folder, some) for some in chosen}
        loras = {some: exported(studio, files[some]) for some in chosen}

        def judged(change: Callable[[Set, Case], Case]) -> list[tuple[Set, Judged]]:
            made = studio.judge([change(some, case) for some, case in scenes])  # noqa: B023
            return [(some, j) for (some, _), j in zip(scenes, made, strict=True)]  # noqa: B023

        average = judged(lambda some, case: weighed(case, some, [1 / len(some)] * len(some)))
        whole = judged(lambda some, case: weighed(case, some, [1.0] * len(some)))
        gated = judged(lambda some, case: dataclasses.replace(case, gates=files[some]))  # noqa: B023
        taken = judged(lambda some, case: dataclasses.replace(case, lora=loras[some]))  # noqa: B023
        ways = [
            row(kinds, f"average (weights 1/{len(kinds)})", average, average),
            row(kinds, "sum, weights 1", whole, average),
            row(kinds, "learned gates", gated, average),
            row(kinds, "exported LoRA", taken, average),
        ]
        shares = [
            sum(named_right(j, some) for some, j in way) / len(way)
            for way in (average, gated, taken)
        ]
        ratio = kept(*shares)
        told_of_export: Row = {
            "loss": round(sum(map(loss_of, loras.values())) / len(loras), 4),
            "file (kB)": round(sum(p.stat().st_size for p in loras.values()) / len(loras) / 1000),
            KEPT: "the gates gain nothing" if ratio is None else round(ratio, 3),
            "asked for": "≥ 0.90",
        }
        ways[-1] = {**ways[-1], **told_of_export}
        rows += ways
        for way in (whole, gated, taken):
            shown += [j for _, j in way[:: max(len(way) // SHOWN, 1)][:SHOWN]]
    notes = [
        "Gates with the default settings, exported as one LoRA (float16, rank of all together): "
        "in each unit the constant weights nearest to those of the gates over 24 pictures of the "
        "prompts they were trained on. The loss is the squared distance of its predictions from "
        "the gates', as a part of the bare model's, at the latents of the gates' own pictures; "
        "loss and file size are means over the sets. Prompts and seeds are those of "
        "`benchmarks.gates.merges`, which no training used. The first pictures: in each kind a "
        "row of the sum at weights 1, the gates, the exported LoRA:",
        setup.save_sheet(NAME, contact_sheet([j.cell() for j in shown], columns=SHOWN)),
    ]
    setup.publish("Gates exported as one LoRA", rows, notes, sets=given.sets)


if __name__ == "__main__":
    main()
