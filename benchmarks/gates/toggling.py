"""One of three gated LoRAs switched off, nothing trained again: do the others keep their effect?"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gates.files import trained
from benchmarks.shared.intervals import share_columns
from benchmarks.shared.options import options, parser
from benchmarks.shared.pictures import Case, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.scenes import element_heads, without
from benchmarks.shared.sets import Set, cases, sets_of
from composer.evaluation.sheets import contact_sheet
from toybox.captions import plain_caption
from toybox.measure import Judged
from toybox.world import Element

NAME = "gates.toggling"
KINDS = ("character", "style", "background")
SHOWN = 4  # pictures of each switch on the sheet


def less(case: Case, left_out: Sequence[Element]) -> Case:
    """The same scene without these elements, in the canonical wording, with the same seed."""
    scene = case.scene
    for element in left_out:
        scene = without(scene, element, random.Random(f"{case.prompt} {element.name}"))
    return Case(scene=scene, prompt=plain_caption(scene), seed=case.seed)


def share(judged: Sequence[Judged], elements: Sequence[Element]) -> list[bool]:
    """Whether the element of each picture is right."""
    return [
        j.right(element_heads(j.case.scene, element))
        for j, element in zip(judged, elements, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Switch each of three off in turn, and compare the others with what they reach alone."""
    asked = parser(NAME, __doc__ or "", count=200, what="pictures of each switch")
    asked.add_argument("--sets", type=int, default=2, help="sets of three (%(default)s)")
    asked.add_argument("--gates", type=Path, help="folder of the gate files")
    given = asked.parse_args(arguments)
    setup = options(NAME, given, arguments)
    folder = given.gates or setup.cache.parent / "gates"
    studio = Studio(setup)
    chosen = sets_of(studio.elements(), KINDS, given.sets)
    files = {some: trained(studio, folder, some) for some in chosen}
    each = -(-setup.count // len(chosen))
    scenes: list[tuple[Set, Case]] = [
        (some, case) for some in chosen for case in cases(some, each, "toggling", 600_000)
    ]
    rows: list[Row] = []
    shown: list[Judged] = []
    for off, kind in enumerate(KINDS):
        pairs = [(some, less(case, [some[off]])) for some, case in scenes]
        gated = studio.judge(
            [
                dataclasses.replace(case, gates=files[some], off=(some[off].name,))
                for some, case in pairs
            ]
        )
        summed = studio.judge(
            [
                dataclasses.replace(
                    case, weights=tuple((e.name, 1.0) for e in some if e is not some[off])
                )
                for some, case in pairs
            ]
        )
        shown += gated[:: max(len(gated) // SHOWN, 1)][:SHOWN]
        for kept in [place for place in range(len(KINDS)) if place != off]:
            alone = studio.judge(
                [
                    dataclasses.replace(
                        less(case, [e for e in some if e is not some[kept]]),
                        weights=((some[kept].name, 1.0),),
                    )
                    for some, case in scenes
                ]
            )
            named = [some[kept] for some, _ in scenes]
            with_others, by_itself = share(gated, named), share(alone, named)
            rows.append(
                {
                    "switched off": kind,
                    "element": KINDS[kept],
                    "n": len(scenes),
                    **share_columns("right with the other", with_others),
                    **share_columns("right alone", by_itself),
                    **share_columns("right in the sum of the two", share(summed, named)),
                    "kept (×)": round(sum(with_others) / max(sum(by_itself), 1), 3),
                    "asked for": "≥ 0.95",
                }
            )
    notes = [
        "Gates of three LoRAs, trained once with the default settings. One is switched off, and "
        "the prompt no longer names it; the gates give its share to the two others. Alone means "
        "the element's own LoRA at weight 1 on the same scenes with no other element; the sum of "
        "the two, at weights 1, makes the same pictures as the gates. The first pictures of each "
        "switch:",
        setup.save_sheet(NAME, contact_sheet([j.cell() for j in shown], columns=SHOWN)),
    ]
    setup.publish("Switching one of three off", rows, notes, sets=given.sets)


if __name__ == "__main__":
    main()
