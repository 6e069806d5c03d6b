"""Where merging fails: the exact weighted sum of two LoRAs, by kind of pair and weight."""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.shared.intervals import share_columns
from benchmarks.shared.options import options, parser
from benchmarks.shared.pictures import Case, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.scenes import element_heads, without
from benchmarks.shared.sets import Set, cases, sets_of, weighed
from composer.evaluation.sheets import contact_sheet
from toybox.captions import plain_caption
from toybox.measure import Judged
from toybox.world import Element

NAME = "toybox.merging"
KINDS: tuple[tuple[str, str], ...] = (
    ("character", "character"),
    ("character", "clothing"),
    ("character", "object"),
    ("character", "style"),
    ("character", "background"),
    ("object", "object"),
    ("object", "clothing"),
    ("object", "style"),
    ("object", "background"),
    ("clothing", "clothing"),
    ("clothing", "style"),
    ("clothing", "background"),
    ("style", "background"),
)
SHOWN = 2  # pictures of each kind on the sheet


def alone(case: Case, kept: Element, left_out: Element) -> Case:
    """The scene with only one of the elements, and its LoRA alone at weight 1: the control."""
    scene = without(case.scene, left_out, random.Random(f"{case.prompt} {left_out.name}"))
    weights = ((kept.name, 1.0),)
    return Case(scene=scene, prompt=plain_caption(scene), seed=case.seed, weights=weights)


def merged_row(kinds: str, weight: float, judged: Sequence[tuple[Set, Judged]]) -> Row:
    """Each element's share, both of them, and the whole picture."""
    each = [[j.right(element_heads(j.case.scene, one)) for one in pair] for pair, j in judged]
    return {
        "kinds": kinds,
        "weights": f"{weight:g}",
        "n": len(judged),
        **share_columns("first right", [answers[0] for answers in each]),
        **share_columns("second right", [answers[1] for answers in each]),
        **share_columns("both right", [all(answers) for answers in each]),
        **share_columns("whole picture right", [j.right() for _, j in judged]),
    }


def control_row(kinds: str, judged: Sequence[tuple[int, Element, Judged]]) -> Row:
    """Each LoRA alone on the same scenes; "both" would be their product, did they not disturb."""
    sides = [
        [j.right(element_heads(j.case.scene, e)) for side, e, j in judged if side == wanted]
        for wanted in (0, 1)
    ]
    shares = [sum(answers) / len(answers) for answers in sides]
    return {
        "kinds": kinds,
        "weights": "each alone at 1",
        "n": len(sides[0]),
        **share_columns("first right", sides[0]),
        **share_columns("second right", sides[1]),
        "both right": f"{100 * shares[0] * shares[1]:.1f} % (product)",
        **share_columns("whole picture right", [j.right() for _, _, j in judged]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write results and a contact sheet."""
    asked = parser(NAME, __doc__ or "", count=52, what="pictures of each kind of pair and weight")
    asked.add_argument("--weights", nargs="+", type=float, default=(1.0, 0.75, 0.5))
    asked.add_argument("--pairs", type=int, default=4, help="pairs of each kind (%(default)s)")
    asked.add_argument("--kinds", nargs="*", default=(), help='such as "character+style"')
    given = asked.parse_args(arguments)
    setup = options(NAME, given, arguments)
    studio = Studio(setup)
    elements = studio.elements()
    rows: list[Row] = []
    shown: list[Judged] = []
    for kinds in KINDS:
        name = " + ".join(kinds)
        chosen = sets_of(elements, kinds, given.pairs, order="pairs")
        if not chosen or (given.kinds and "+".join(kinds) not in given.kinds):
            continue
        print(f"{name}: {', '.join(f'{a.name} + {b.name}' for a, b in chosen)}", flush=True)
        each = -(-setup.count // len(chosen))  # rounded up: never fewer than asked for
        scenes = [
            (pair, case) for pair in chosen for case in cases(pair, each, "benchmark", 130_000)
        ]
        # two controls of half the pictures cost as much as one weight
        controls = [
            (side, pair[side], alone(case, pair[side], pair[1 - side]))
            for pair, case in scenes[::2]
            for side in (0, 1)
        ]
        control = studio.judge([case for _, _, case in controls])
        rows.append(
            control_row(name, [(s, e, j) for (s, e, _), j in zip(controls, control, strict=True)])
        )
        for weight in given.weights:
            judged = studio.judge([weighed(case, pair, [weight] * 2) for pair, case in scenes])
            found = [(pair, j) for (pair, _), j in zip(scenes, judged, strict=True)]
            rows.append(merged_row(name, weight, found))
            if weight == given.weights[0]:
                shown += judged[::each][:SHOWN]
    notes = [
        "A pair is right when the oracle sees both named elements, each where the prompt puts it; "
        "the whole picture, when everything else is right too. Clothing is always worn by an "
        "animal of the base world beside the other figure. The control takes one of the two "
        "elements out of the same scenes and uses the other's LoRA alone; the product of the two "
        f"shares is what merging would reach if the LoRAs did not disturb each other. The first "
        f"pictures of each kind at weights {given.weights[0]:g}, not chosen:",
        setup.save_sheet("merges", contact_sheet([j.cell() for j in shown], columns=6)),
    ]
    setup.publish("The exact weighted sum of two LoRAs", rows, notes, pairs=given.pairs)


if __name__ == "__main__":
    main()
