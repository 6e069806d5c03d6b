"""Scores of a grid's pictures with no other weights than the model's and the LoRAs'.

*Recognised*: by how much better LoRA i explains a picture than the bare model does,

    D_i = log ||v - v_0||^2 - log ||v - v_i||^2

(`training.gates.judges`), as a part of D_i of the picture that it makes alone of the same prompt
and seed, if the grid has one. *Unlike bare*: the mean difference of a pixel's values (of 255) from
the picture of the bare model, if the grid has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from composer.fusions import LoraRow, Plan, Sum
from composer.studio.axes import ALONE, BARE, GridCell
from composer.studio.events import Finished
from composer.studio.grid import GridFolder, Painted, painted_cells
from composer.studio.requests import ComposeRequest
from composer.training.gates.judges import Judges

if TYPE_CHECKING:
    from composer.studio.engine import Engine

DRAWS = 8
"""Noise levels at which each picture is looked at; the same for all pictures."""

Cells = Sequence[tuple[GridCell, ComposeRequest, Plan]]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The scores of one cell, by its number."""

    cell: int
    scores: Mapping[str, float]


def score_cells(
    engine: Engine, folder: GridFolder, cells: Cells, cancelled: Callable[[], bool]
) -> Iterator[Scored | Finished]:
    """The scores of every cell that is painted, in order."""
    painted = painted_cells(engine, folder, cells)
    paths = {name: path for _, _, plan in cells for name, path in plan.paths.items()}
    names = sorted(paths)
    rows = {name: LoraRow(name=name) for name in names}
    engine.mix(Plan(recipe=Sum(), rows=rows, paths=paths))
    known = [
        None if one is None else _seen(engine, names, one, asked)
        for one, (_, asked, _) in zip(painted, cells, strict=True)
        if not cancelled()
    ]
    others = {_rest(cell): n for n, (cell, _, _) in enumerate(cells)}
    for number, one in enumerate(known):
        picture = painted[number]
        if one is None or picture is None:
            continue
        scores = {"seconds": picture.seconds}
        cell, _, plan = cells[number]
        bare = others.get(_rest(cell, BARE))
        for index, name in enumerate(names):
            alone = others.get(_rest(cell, f"{ALONE}:{name}"))
            reference = None if alone is None else known[alone]
            if name not in plan.paths or (reference is None and alone is not None):
                continue
            if reference is None:
                scores[f"{name}: D"] = one[index]
            elif reference[index] > 0:
                scores[f"{name} recognised"] = one[index] / reference[index]
        if bare is not None and (base := painted[bare]) is not None:
            scores["unlike bare"] = _difference(picture, base)
        yield Scored(cell=number, scores=scores)
    yield Finished(cancelled=cancelled())


def _rest(cell: GridCell, way: str | None = None) -> tuple[str, ...]:
    """A cell's labels, with another way."""
    return tuple(way if way and n == cell.way else label for n, label in enumerate(cell.labels))


@torch.no_grad()
def _seen(engine: Engine, names: Sequence[str], one: Painted, asked: ComposeRequest) -> list[float]:
    """D of each LoRA."""
    if engine.mixture is None:
        return []
    image = np.asarray(one.saved.image(), dtype=np.float32) / 255
    clean = engine.model.to_latents(torch.tensor(image).permute(2, 0, 1)[None])
    judges = Judges(engine.model, engine.mixture)
    generator = torch.Generator().manual_seed(0)
    draws = clean.expand(DRAWS, -1, -1, -1)
    with engine.mixture.weighing_rows():
        found = judges.recognise(
            draws, [asked.request.prompt] * DRAWS, range(len(names)), generator
        )
    return [float(one) for one in found.mean(1)]


def _difference(one: Painted, other: Painted) -> float:
    first, second = (np.asarray(each.saved.image(), dtype=np.float32) for each in (one, other))
    if first.shape != second.shape:
        return float("nan")
    return float(np.abs(first - second).mean())
