"""A grid's report: its pictures with their scores, and each way beside the weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from composer.evaluation.intervals import FEWEST, paired
from composer.evaluation.report import Shown, Standing, report
from composer.fusions import Sum
from composer.studio.axes import Axis, GridCell
from composer.studio.grid import LEAST, Filled

AGAINST = (Sum.kind, "yours")
"""The ways that are the weighted sum: with weights of 1 as all merges, or with the user's alone."""
SCORES = {
    "recognised": "how well a LoRA recognises its hand, as a part of the same in the picture that "
    "it makes alone of the prompt and seed",
    "D": "by how much better a LoRA explains the picture than the bare model does, as a logarithm, "
    "where no picture of it alone is there to compare with",
    "CLIP-I": "the cosine of the picture and a picture of what a LoRA teaches, by CLIP: the mean "
    "over the reference pictures, or without any over those of the grid that the LoRA makes alone, "
    "but itself",
    "DINO": "the same by a DINO, which sees details of a figure that CLIP does not",
    "cropped CLIP-I": "CLIP-I of the crop where it is highest, for LoRAs that share a picture: "
    "squares of 1, 3/4 and 1/2 of the shorter side, half a side apart or less; of a style that of "
    "the whole picture",
    "cropped DINO": "the same by a DINO",
    "CLIP-T": "the cosine of the picture and its prompt by CLIP. It does not agree with people on "
    "composition (Multi-LoRA Composition, arXiv 2402.16843: Pearson's r -0.006 with their ratings "
    "of composed LoRAs): do not choose a way by it",
    "unlike bare": "the mean difference of a pixel's values (of 255) from the bare model's picture",
    "seconds": "that the picture took",
}
"""What scores mean, in words."""
WHOLES = {"recognised": 1, f"{LEAST}recognised": 1, "unlike bare": 255}
"""What 100 % is of the scores that the page says in per cent."""
COSTS = ("unlike bare", "seconds")
"""Of which more is not better."""


def standings_of(
    cells: Sequence[GridCell], filled: Mapping[int, Filled]
) -> tuple[tuple[Standing, ...], str]:
    """Each score of each way over its pictures, and what it is compared with ("" for nothing): the
    weighted sum's pictures of the same seed, prompt and settings that have the same LoRAs.

    Pictures of one seed and prompt that differ in other settings depend on each other.
    """
    by_way: dict[str, list[tuple[GridCell, Filled]]] = {}
    for number, cell in enumerate(cells):
        if cell.way is not None and number in filled:
            by_way.setdefault(cell.labels[cell.way], []).append((cell, filled[number]))
    against = next((way for way in AGAINST if way in by_way), "")
    sums = {cell.labels: one.overall for cell, one in by_way.get(against, ())}
    found: list[Standing] = []
    for way, shown in by_way.items():
        for score in dict.fromkeys(name for _, one in shown for name in one.overall):
            values: list[float] = []
            pairs: list[tuple[float, float]] = []
            clusters: list[tuple[str, int]] = []
            for cell, one in shown:
                if (own := one.overall.get(score)) is None:
                    continue
                values.append(own[1])
                other = sums.get(cell.by(against) or (), {}).get(score)
                if score not in COSTS and way != against and other and other[0] == own[0]:
                    pairs.append((own[1], other[1]))
                    clusters.append((cell.asked.request.prompt, cell.asked.request.seed))
            found.append(
                Standing(
                    way=way,
                    score=score,
                    pictures=len(values),
                    mean=fmean(values),
                    paired=paired(pairs, clusters) if pairs else None,
                )
            )
    return tuple(found), against


def notes_on(standings: Sequence[Standing], against: str) -> tuple[str, ...]:
    """What the scores mean, and how they are compared, in sentences.

    against: what people call the weighted sum; "" for none.
    """
    names = dict.fromkeys(one.score.removeprefix(LEAST) for one in standings)
    notes = [f"{name}: {SCORES[name]}." for name in names]
    if any(one.score.startswith(LEAST) for one in standings):
        notes.append("Of several LoRAs the mean is given, and the least of one.")
    if any(one.paired for one in standings):
        notes.append(
            f"Wins: in what share of the pairs with the weighted sum ({against}), of the same "
            "seed, prompt and settings, the score is higher; equal ones count half. Below them: "
            "the mean difference with its 95 % interval, by bootstrap over seeds and prompts, of "
            f"which it takes {FEWEST}."
        )
    return tuple(notes)


def report_of(
    title: str,
    axes: Sequence[Axis],
    cells: Sequence[GridCell],
    filled: Mapping[int, Filled],
    *,
    folder: str = "",
) -> dict[str, bytes]:
    """A grid's report, its files by name; the last axis runs across.

    filled: what there is of the cells, by their numbers. folder: that of the pictures, below the
        report's own.
    """

    def shown(number: int) -> Shown | None:
        if (one := filled.get(number)) is None:
            return None
        labels, saved = cells[number].labels, one.painted.saved
        words = (axis.titled(label) for axis, label in zip(axes, labels, strict=True))
        return Shown(
            labels=labels,
            caption="\n".join(words),
            file=f"{folder}{saved.id}",
            image=saved.image(),
            scores=one.row,
        )

    standings, against = standings_of(cells, filled)
    return report(
        title,
        [axis.name for axis in axes],
        [shown(number) for number in range(len(cells))],
        across=len(axes[-1].places),
        standings=standings,
        notes=notes_on(standings, against),
    )
