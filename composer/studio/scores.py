"""Scores of a grid's pictures with no other weights than the model's and the LoRAs'.

*Recognised*: by how much better LoRA i explains a picture than the bare model does,

    D_i = log ||v - v_0||^2 - log ||v - v_i||^2

(`training.gates.judges`), as a part of D_i of the picture that it makes alone of the same prompt
and seed, if the grid has one. *Unlike bare*: the mean difference of a pixel's values (of 255) from
the picture of the bare model, if the grid has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from composer.clock import Clock
from composer.fusions import LoraRow, Plan, Sum
from composer.studio.axes import ALONE, BARE
from composer.studio.events import Progress
from composer.studio.grid import Cells, Filled, GridFolder, Painted, Scores, painted_cells
from composer.training.gates.judges import Judges

if TYPE_CHECKING:
    from composer.studio.engine import Engine

DRAWS = 8
"""Noise levels at which each picture is looked at; the same for all pictures."""


def score_cells(
    engine: Engine,
    folder: GridFolder,
    cells: Cells,
    cancelled: Callable[[], bool],
    *,
    asked: bool,
) -> Iterator[Filled | Progress]:
    """The scores of every cell that is painted, in order, after the progress of finding them.

    asked: whether the LoRAs are; else, and once cancelled, the seconds alone are given.
    """
    painted = painted_cells(engine, folder, cells)
    paths = {name: path for _, _, plan in cells for name, path in plan.paths.items()}
    names = sorted(paths)
    rows = {name: LoraRow(name=name) for name in names}
    engine.mix(Plan(recipe=Sum(), rows=rows, paths=paths))
    seen: dict[int, list[float]] = {}
    clock = Clock(0, len(cells))
    for number, one in enumerate(painted if asked else ()):
        if cancelled():
            break
        if one is not None:
            seen[number] = recognised(engine, one, cells[number][1].request.prompt)
        yield Progress(
            step=number + 1,
            steps=len(cells),
            pictures=range(number, number + 1),
            count=len(cells),
            seconds_left=clock.seconds_left(number + 1),
            scoring=True,
        )
    others: dict[tuple[str, ...] | None, int] = {}
    others |= {cell.labels: number for number, (cell, _, _) in enumerate(cells)}
    for number, one in enumerate(painted):
        if one is None:
            continue
        cell, _, plan = cells[number]
        judged: dict[str, float] = {}
        parts: dict[str, float] = {}
        for index, name in enumerate(names if number in seen else ()):
            if name not in plan.paths:
                continue
            judged[name] = seen[number][index]
            alone = others.get(cell.by(f"{ALONE}:{name}"))
            if alone in seen and seen[alone][index] > 0:
                parts[name] = judged[name] / seen[alone][index]
        bare = others.get(cell.by(BARE)) if asked else None
        base = None if bare is None else painted[bare]
        scores = Scores(
            judged=judged,
            recognised=parts,
            unlike_bare=None if base is None else _difference(one, base),
        )
        yield Filled(cell=number, painted=one, scores=scores)


@torch.no_grad()
def recognised(engine: Engine, one: Painted, prompt: str) -> list[float]:
    """D of each LoRA of the engine's mixture in a picture, the mean over `DRAWS` noise levels."""
    if engine.mixture is None:
        return []
    image = np.asarray(one.saved.image(), dtype=np.float32) / 255
    clean = engine.model.to_latents(torch.tensor(image).permute(2, 0, 1)[None])
    judges = Judges(engine.model, engine.mixture)
    generator = torch.Generator().manual_seed(0)
    experts = range(len(engine.mixture.names))
    with engine.mixture.weighing_rows():
        found = judges.recognise(
            clean.expand(DRAWS, -1, -1, -1), [prompt] * DRAWS, experts, generator
        )
    return [float(one) for one in found.mean(1)]


def _difference(one: Painted, other: Painted) -> float | None:
    """None for pictures of two sizes."""
    first, second = (np.asarray(each.saved.image(), dtype=np.float32) for each in (one, other))
    if first.shape != second.shape:
        return None
    return float(np.abs(first - second).mean())
