"""Is the toybox's model right? Pictures of unseen prompts and seeds, judged by the oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.shared.intervals import bootstrap_mean, interval_columns, share_columns
from benchmarks.shared.options import Options, options, parser
from benchmarks.shared.pictures import Case, Judged, Studio
from benchmarks.shared.results import Row
from benchmarks.shared.scenes import look, unseen_prompt
from benchmarks.toybox.fidelity import mean_distance, psnr, round_trips
from composer.evaluation.sheets import Cell, contact_sheet
from toybox.captions import plain_caption
from toybox.oracle import HEADS, SLOTS
from toybox.render import render
from toybox.stage_oracle import examine
from toybox.world import Scene, random_any_scene

NAME = "toybox.model"
SEEDS_ALIKE = 8
PLAIN, VARIED = "canonical", "varied"


def cases(count: int) -> list[Case]:
    """`count` pictures: half show one figure and half two, half in each wording."""
    made: list[Case] = []
    rng = random.Random("benchmark prompts")
    half = count // 2
    scenes = look(half, "one", two=0.0) + look(count - half, "two", two=1.0)
    for index, scene in enumerate(scenes):
        prompt = plain_caption(scene) if index % 2 == 0 else unseen_prompt(scene, rng)
        made.append(Case(scene=scene, prompt=prompt, seed=70_000 + index))
    return made


def picture_rows(judged: Sequence[Judged]) -> list[Row]:
    """Everything right, by number of figures and wording; then colour words."""
    rows: list[Row] = []
    for number, asked in ((1, "≥ 95 %"), (2, "≥ 85 %")):
        these = [j for j in judged if len(j.case.scene.figures) == number]
        what = "one thing in a place" if number == 1 else "two things, each on its side"
        for wording, chosen in _by_wording(these):
            rows.append(
                {
                    "table": "Everything right",
                    "pictures show": what,
                    "wording": wording,
                    "n": len(chosen),
                    **share_columns("right", [j.right() for j in chosen]),
                    "asked for": asked if wording == "both" else None,
                }
            )
    words = [j.score[head] for j in judged for head in j.score if head.endswith("colour")]
    if words:
        rows.append(
            {
                "table": "Everything right",
                "pictures show": "the colour that a word asks for",
                "wording": "both",
                "n": len(words),
                **share_columns("right", words),
                "asked for": "≥ 90 %",
            }
        )
    return rows


def _by_wording(judged: Sequence[Judged]) -> Iterable[tuple[str, list[Judged]]]:
    plain = [j for j in judged if j.case.prompt == plain_caption(j.case.scene)]
    varied = [j for j in judged if j not in plain]
    for wording, chosen in (("both", list(judged)), (PLAIN, plain), (VARIED, varied)):
        if chosen:
            yield wording, chosen


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
        "the base world": lambda rng: look(1, str(rng.random()), two=0.5)[0],
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
        asked = {"renderings": "≥ 99 %", "VAE round trips": "≥ 97 %"}[str(row["pictures"])]
        rows.append(
            {
                "table": "The oracle on what it has not seen",
                "pictures": str(row["pictures"]),
                "answer": of.replace("_", " ") if of in HEADS else of,
                "n": n,
                **share_columns("right", [True] * right + [False] * (n - right)),
                "asked for": asked if of == "mean of all answers" else None,
            }
        )
    return rows


def variety(studio: Studio, prompts: int) -> tuple[list[Row], list[Cell]]:
    """How far pictures of one prompt and eight seeds lie from each other, as renderings do."""
    scenes = look(prompts, "variety", two=0.34)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write results and contact sheets."""
    asked = parser(NAME, __doc__ or "", count=512, what="pictures judged")
    asked.add_argument("--prompts-alike", type=int, default=12, help="prompts drawn with 8 seeds")
    asked.add_argument("--renderings", type=int, default=1000, help="to examine the oracle with")
    given = asked.parse_args(arguments)
    setup: Options = options(NAME, given, arguments)
    studio = Studio(setup)
    judged = studio.judge(cases(setup.count))
    rows: list[Any] = [*picture_rows(judged), *part_rows(judged)]
    alike, seeds = variety(studio, given.prompts_alike)
    trips, compared = vae_rows(studio, max(given.renderings // 8, 4))
    rows += [*alike, *trips, *oracle_rows(studio, given.renderings)]
    one, two = [[j for j in judged if len(j.case.scene.figures) == n][:24] for n in (1, 2)]
    notes = [
        "A picture is right only if every answer of the oracle about it is right: each thing on "
        "its side, each colour word, the background, no style, nothing added. Prompts and seeds "
        "are unseen; wordings that do not name the background are not used. The first pictures, "
        "not chosen; a broken red line marks what the oracle found wrong:",
        setup.save_sheet("toybox_one_thing", contact_sheet([j.cell() for j in one], columns=8)),
        setup.save_sheet("toybox_two_things", contact_sheet([j.cell() for j in two], columns=8)),
        "Eight seeds of the same prompt:",
        setup.save_sheet("toybox_seeds", contact_sheet(seeds, columns=SEEDS_ALIKE)),
        "Renderings and their VAE round trips, the first ones:",
        setup.save_sheet("toybox_vae", contact_sheet(compared, columns=8)),
    ]
    setup.publish("The toybox's model", rows, notes)


if __name__ == "__main__":
    main()
