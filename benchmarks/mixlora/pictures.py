"""One MixLoRA of all characters beside their LoRAs: one alone, two side by side, and none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from benchmarks.shared import sets
from benchmarks.shared.intervals import share_columns
from benchmarks.shared.options import options, parser
from benchmarks.shared.pictures import Case, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.scenes import element_heads, look, rest_heads
from benchmarks.toybox import lora_alone
from composer.errors import ComposerError
from composer.evaluation.sheets import contact_sheet
from composer.experts.header import read_header
from composer.fusions.mixlora_file import read_mixlora_facts
from toybox.captions import plain_caption
from toybox.measure import Judged
from toybox.world import ELEMENTS, Element

NAME = "mixlora.pictures"
CHARACTERS = tuple(e for e in ELEMENTS if e.kind == "character")
SHOWN = 6  # pictures of each way on the sheet
MIXLORA, ALL = "MixLoRA", "all LoRAs at once"
Judgement = tuple[tuple[Element, ...], Judged]


def parameters(path: Path) -> int:
    """How many numbers a file has trained."""
    shapes = [entry.shape for entry in read_header(path).tensors.values()]
    return sum(math.prod(shape) for shape in shapes if shape)  # kohya's alphas have no axis


def added(case: Case, some: Sequence[Element]) -> Case:
    """The case with these LoRAs at weight 1, added up."""
    return dataclasses.replace(case, weights=tuple((e.name, 1.0) for e in some))


def placed(case: Case, path: Path) -> Case:
    """The case with the MixLoRA alone."""
    return dataclasses.replace(case, weights=(), mixlora=path)


def row(table: str, called: str, way: str, size: int, judged: Sequence[Judgement]) -> Row:
    """The shares of right characters, of the rest, and of whole pictures."""
    named = [all(j.right(element_heads(j.case.scene, e)) for e in some) for some, j in judged]
    rest = [j.right(rest_heads(j.case.scene, some)) for some, j in judged]
    found: Row = {"table": table, "prompts call": called, "way": way, "n": len(judged)}
    found["trained numbers"] = size
    if any(some for some, _ in judged):
        found |= share_columns("characters right", named)
        found |= share_columns("rest right", rest)
    return found | share_columns("whole picture right", [j.right() for _, j in judged])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write results and a contact sheet."""
    asked = parser(NAME, __doc__ or "", count=200, what="pictures of each row")
    asked.add_argument("--mixlora", type=Path, help="the file (default: the shipped one)")
    given = asked.parse_args(arguments)
    setup = options(NAME, given, arguments)
    path: Path = given.mixlora or given.loras / "mixlora" / "characters.safetensors"
    if not setup.truth and not path.is_file():
        raise ComposerError(
            f"There is no {path}: make it with `python -m toybox build --stage mixlora`."
        )
    studio = Studio(setup)
    everyone = studio.elements([e.name for e in CHARACTERS])
    each = {e: parameters(studio.path(e)) for e in everyone}
    whole, size = sum(each.values()), parameters(path)
    rows: list[Row] = []
    sheet: list[Judged] = []

    def judge(some: Sequence[tuple[Element, ...]], cases: Sequence[Case]) -> list[Judgement]:
        return list(zip(some, studio.judge(cases), strict=True))

    def show(judged: Sequence[Judgement]) -> None:
        sheet.extend(j for _, j in judged[:: max(len(judged) // SHOWN, 1)][:SHOWN])

    table = "One character"
    singles = {e: lora_alone.cases(e, setup.count) for e in everyone}
    for e, cases in singles.items():
        alone = [(e,)] * len(cases)
        rows.append(row(table, e.name, "its LoRA", each[e], judge(alone, cases)))
        learned = judge(alone, [placed(case, path) for case in cases])
        rows.append(row(table, e.name, MIXLORA, size, learned))
        show(learned)
    some = -(-setup.count // len(everyone))
    mixed = [((e,), added(case, everyone)) for e, cases in singles.items() for case in cases[:some]]
    judged = judge([names for names, _ in mixed], [case for _, case in mixed])
    rows.append(row(table, "one of them", ALL, whole, judged))

    table = "Two characters side by side"
    couples = list(combinations(everyone, 2))
    some = -(-setup.count // len(couples))
    pairs = [(pair, case) for pair in couples for case in sets.cases(pair, some, "test", 400_000)]
    names = [pair for pair, _ in pairs]
    both = judge(names, [added(case, pair) for pair, case in pairs])
    size_of_two = 2 * whole // len(everyone)
    rows.append(row(table, "two of them", "their two LoRAs", size_of_two, both))
    judged = judge(names, [added(case, everyone) for _, case in pairs])
    rows.append(row(table, "two of them", ALL, whole, judged))
    learned = judge(names, [placed(case, path) for _, case in pairs])
    rows.append(row(table, "two of them", MIXLORA, size, learned))
    show(both)
    show(learned)

    table = "None of them"
    scenes = look(setup.count, "picture_mixlora")
    bare = [
        Case(scene=scene, prompt=plain_caption(scene), seed=500_000 + index)
        for index, scene in enumerate(scenes)
    ]
    nobody: list[tuple[Element, ...]] = [()] * len(bare)
    rows.append(row(table, "none", "the bare model", 0, judge(nobody, bare)))
    judged = judge(nobody, [added(case, everyone) for case in bare])
    rows.append(row(table, "none", ALL, whole, judged))
    judged = judge(nobody, [placed(case, path) for case in bare])
    rows.append(row(table, "none", MIXLORA, size, judged))
    show(judged)

    called = [e.name.title() for e in everyone]
    notes = [
        f"One file trained on all {len(called)} characters and always in the model, compared with "
        "LoRAs chosen by the prompt, and with all LoRAs at once. "
        + _trained(path, [studio.path(e) for e in everyone]),
        "No picture that any of them was trained on shows two of them. The first pictures: the "
        f"MixLoRA with {', '.join(called[:-1])} and {called[-1]}; two characters by their LoRAs, "
        "and by the MixLoRA; and a prompt that calls none, with the MixLoRA:",
        setup.save_sheet(NAME, contact_sheet([j.cell() for j in sheet], columns=SHOWN)),
    ]
    setup.publish("A MixLoRA of all characters", rows, notes)


def _trained(path: Path, loras: Sequence[Path]) -> str:
    """What the files say of their training."""
    if not path.is_file():
        return ""
    facts = read_mixlora_facts(path)
    settings = facts.training["settings"]
    router = facts.settings.router
    loads = [sorted(load, reverse=True) for load in facts.training["loads"].values()]
    few = sum(sum(load[: router.top_k]) > 0.95 for load in loads)
    alike = settings.get("balance_over") == "layer"
    over = "in each layer" if alike else "over all layers together"
    return (
        f"It has {router.experts} experts of rank {facts.settings.experts.rank} in each "
        f"feed-forward, {router.top_k} for each token, and was trained for "
        f"{facts.training['steps']} steps of {settings['batch_size']} pictures in all"
        f"{_alone(loras)}. In {few} of the {len(loads)} feed-forwards the same {router.top_k} "
        "experts got more than 95 % of all choices in the end; where they did, routing decides "
        f"little. The balance loss was computed {over}."
    )


def _alone(loras: Sequence[Path]) -> str:
    """How long each LoRA was trained, where all of their files say the same."""
    metadata = [read_header(path).metadata for path in loras if path.is_file()]
    said = {(m.get("ss_steps"), m.get("ss_batch_size_per_device")) for m in metadata}
    if len(said) != 1 or None in (one := next(iter(said))):
        return ""
    return f"; each LoRA for {one[0]} steps of {one[1]}"


if __name__ == "__main__":
    main()
