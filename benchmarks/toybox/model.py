"""Is the toybox's model right? Pictures of unseen prompts and seeds, judged by the oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from benchmarks.shared.intervals import interval_columns, share_columns
from benchmarks.shared.options import Options, options, parser
from benchmarks.shared.pictures import Case, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.scenes import look
from benchmarks.toybox import looked
from benchmarks.toybox.fidelity import mean_distance, psnr, round_trips
from composer.evaluation.intervals import bootstrap_mean
from composer.evaluation.sheets import Cell, contact_sheet
from toybox import measure
from toybox.building import megabytes
from toybox.captions import plain_caption
from toybox.measure import Judged
from toybox.oracle import HEADS, SLOTS
from toybox.render import render
from toybox.stage_oracle import examine
from toybox.world import MOST_FIGURES, Scene, random_any_scene, random_scene

NAME = "toybox.model"
SEEDS_ALIKE = 8
SHEETS = {1: "toybox_one_thing", 2: "toybox_two_things", 3: "toybox_three_things"}
"""By number of figures."""
BOUNDS = {"renderings": "≥ 99 %", "VAE round trips": "≥ 97 %"}
"""What the mean of the oracle's answers has to reach."""
ANSWERS = {
    "strict": "a figure that no one can name is not named",
    "fair": "a figure that everyone can name is named",
}
"""What is asked of the oracle about degraded pictures, where it learned from such."""


def cases(count: int) -> list[Case]:
    """`count` pictures of each number of figures, half in each wording."""
    return [Case(**vars(case)) for case in measure.cases(count)]


def picture_rows(judged: Sequence[Judged]) -> list[Row]:
    """Everything right, by number of figures and wording; then colour words."""
    found = {wording: measure.answers(some) for wording, some in _by_wording(judged).items()}
    return [
        {
            "table": "Everything right",
            "pictures show": what,
            "wording": wording,
            "n": len(right[what]),
            **share_columns("right", right[what]),
            "asked for": f"≥ {bar:.0%}".replace("%", " %") if wording == "both" else None,
        }
        for what, bar in measure.BARS.items()
        for wording, right in found.items()
        if right[what]
    ]


def _by_wording(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    plain = [j.case.prompt == plain_caption(j.case.scene) for j in judged]
    sides = list(zip(judged, plain, strict=True))
    return {
        "both": list(judged),
        "canonical": [j for j, is_plain in sides if is_plain],
        "varied": [j for j, is_plain in sides if not is_plain],
    }


def whole_rows(judged: Sequence[Judged], folder: Path) -> list[Row]:
    """How crisp the pictures are, and how large the model's files."""
    return [
        {"table": "The model as a whole", "figure": figure, "here": here, "asked for": asked}
        for figure, here, asked in (
            (
                "gradient energy of pictures, as a part of that of renderings",
                round(measure.crispness(judged), 3),
                f"≥ {measure.CRISP}",
            ),
            ("MB of all files", round(megabytes(folder), 1), f"≤ {measure.MEGABYTES}"),
        )
    ]


def part_rows(judged: Sequence[Judged]) -> list[Row]:
    """Each thing and each background, the weakest first: where the misses are."""
    found: dict[tuple[str, str], list[bool]] = {}
    for j in judged:
        for side, figure in zip(SLOTS, j.case.scene.figures, strict=False):
            found.setdefault(("thing", figure.name), []).append(j.score[side])
        found.setdefault(("background", j.case.scene.background), []).append(j.score["background"])
    rows: list[Row] = [
        {
            "table": "Where the misses are",
            "part": part,
            "name": name,
            "n": len(answers),
            **share_columns("right", answers),
        }
        for (part, name), answers in found.items()
        if not all(answers)
    ]
    return sorted(rows, key=lambda row: float(row["right"] or 0))[:12]


def vae_rows(studio: Studio, count: int) -> tuple[list[Row], list[Cell]]:
    """PSNR of round trips of renderings no stage has seen, and a sheet of the first."""
    rows: list[Row] = []
    cells: list[Cell] = []
    draws: dict[str, Callable[[random.Random], Scene]] = {
        "the base world": random_scene,
        "the whole world": random_any_scene,
    }
    for what, draw in draws.items():
        rng = random.Random(f"round trips {what}")
        images = [render(draw(rng), rng) for _ in range(count)]
        tripped = round_trips(studio.model, images)
        decibels = [psnr(a, b) for a, b in zip(images, tripped, strict=True)]
        columns = interval_columns("PSNR (dB)", bootstrap_mean(decibels))
        rows.append(
            {
                "table": "VAE round trips",
                "renderings of": what,
                "n": count,
                **columns,
                "asked for": "≥ 30 dB",
            }
        )
        for image, trip, decibel in list(zip(images, tripped, decibels, strict=True))[:4]:
            cells += [
                Cell(image=image, caption="rendering"),
                Cell(image=trip, caption=f"round trip, {decibel:.1f} dB"),
            ]
    return rows, cells


def oracle_rows(studio: Studio, count: int) -> list[Row]:
    """The judge's own accuracy."""
    rows: list[Row] = []
    for row in examine(studio.oracle, studio.model.vae, count=count):
        of, n = str(row["element"]), int(str(row["n"]))
        right = round(float(str(row["right"])) * n)
        pictures = str(row["pictures"])
        rows.append(
            {
                "table": "The oracle on what it has not seen",
                "pictures": pictures,
                "answer": of.replace("_", " ") if of in HEADS else ANSWERS.get(of, of),
                "n": n,
                **share_columns("right", [True] * right + [False] * (n - right)),
                "asked for": BOUNDS[pictures] if of == "mean of all answers" else None,
            }
        )
    return rows


def variety(studio: Studio, prompts: int) -> tuple[list[Row], list[Cell]]:
    """How far pictures of one prompt and eight seeds lie from each other, as renderings do."""
    scenes = look(prompts, "variety")
    made = [
        Case(scene=scene, prompt=plain_caption(scene), seed=90_000 + seed)
        for scene in scenes
        for seed in range(SEEDS_ALIKE)
    ]
    judged = studio.judge(made)
    groups = [judged[i : i + SEEDS_ALIKE] for i in range(0, len(judged), SEEDS_ALIKE)]
    pictures = [mean_distance([j.image for j in group]) for group in groups]
    drawn = [
        mean_distance([render(s, random.Random(f"variety {i}")) for i in range(SEEDS_ALIKE)])
        for s in scenes
    ]
    rows: list[Row] = [
        {
            "table": "Different seeds, same prompt",
            "mean difference of a pixel (of 255) between": what,
            "prompts": prompts,
            "seeds": SEEDS_ALIKE,
            **interval_columns("difference (of 255)", bootstrap_mean([255 * v for v in values])),
        }
        for what, values in (("pictures of the model", pictures), ("renderings", drawn))
    ]
    return rows, [j.cell() for group in groups[:6] for j in group]


def sheets_of(judged: Sequence[Judged]) -> Iterator[tuple[int, Image.Image]]:
    """The first pictures of each number of figures."""
    for number in range(1, MOST_FIGURES + 1):
        some = [j for j in judged if len(j.case.scene.figures) == number][:24]
        yield number, contact_sheet([j.cell() for j in some], columns=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write results and contact sheets."""
    asked = parser(NAME, __doc__ or "", count=200, what="pictures of each number of figures")
    asked.add_argument("--prompts-alike", type=int, default=12, help="prompts drawn with 8 seeds")
    asked.add_argument("--renderings", type=int, default=1000, help="to examine the oracle with")
    given = asked.parse_args(arguments)
    setup: Options = options(NAME, given, arguments)
    studio = Studio(setup)
    judged = studio.judge(cases(setup.count))
    rows: list[Row] = [*picture_rows(judged), *part_rows(judged)]
    rows += whole_rows(judged, setup.model)
    alike, seeds = variety(studio, given.prompts_alike)
    trips, compared = vae_rows(studio, max(given.renderings // 8, 4))
    rows += [*alike, *trips, *oracle_rows(studio, given.renderings)]
    rows += looked.rows_of(studio.oracle)
    notes = [
        "A picture is right only if every answer of the oracle about it is right: each thing in "
        "its place, each colour word, the background, no style, nothing added. Prompts and seeds "
        "are unseen; wordings that do not name the background are not used. The first pictures, "
        "not chosen; a broken red line marks what the oracle found wrong:",
        *(setup.save_sheet(SHEETS[number], sheet) for number, sheet in sheets_of(judged)),
        "Eight seeds of the same prompt:",
        setup.save_sheet("toybox_seeds", contact_sheet(seeds, columns=SEEDS_ALIKE)),
        "Renderings and their VAE round trips, the first ones:",
        setup.save_sheet("toybox_vae", contact_sheet(compared, columns=8)),
    ]
    setup.publish("The toybox's model", rows, notes)


if __name__ == "__main__":
    main()
