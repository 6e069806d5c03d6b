"""A grid of pictures, painted into a folder; one that is there is not painted again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from composer.errors import ComposerError
from composer.experts.hashes import file_hash_of
from composer.files import check_writable, write_atomically
from composer.fusions import Plan
from composer.outside import number, parse_object
from composer.studio.axes import GridCell
from composer.studio.comparing import paint_each
from composer.studio.events import Event, PictureSaved, Progress
from composer.studio.history import History, SavedPicture
from composer.studio.requests import ComposeRequest

if TYPE_CHECKING:
    from composer.studio.engine import Engine

INDEX = "painted.json"
AT_ONCE = 8
"""Pictures of one batch, at most."""
LEAST = "least "
"""Before the name of a score: of the LoRA of which it is least."""

Cells = Sequence[tuple[GridCell, ComposeRequest, Plan]]
"""With what is asked for by full names, and the plan for it."""


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A picture of a grid, and how long it took."""

    saved: SavedPicture
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What is known of a picture; see `composer.studio.scores`.

    judged: D of each LoRA in it. recognised: the same as a part of D of the picture that the LoRA
        makes alone, for those that the grid has alone and that are seen there.
    unlike_bare: None where the grid has no picture of the bare model.
    clip_text: CLIP-T, where there is a CLIP.
    likeness: CLIP-I and DINO, where there are such, of each LoRA in it that the grid has alone or
        that has reference pictures; of these the best crop's too.
    """

    judged: Mapping[str, float] = field(default_factory=dict[str, float])
    recognised: Mapping[str, float] = field(default_factory=dict[str, float])
    unlike_bare: float | None = None
    clip_text: float | None = None
    likeness: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict[str, Mapping[str, float]]
    )


@dataclass(frozen=True, kw_only=True)
class Filled:
    """The cell of this number has its picture; and its scores, when they are found."""

    cell: int
    painted: Painted
    scores: Scores | None = None

    @cached_property
    def overall(self) -> dict[str, tuple[frozenset[str], float]]:
        """Its scores as a whole, each with the LoRAs that it is of: what is known of each LoRA as
        their mean, and as the least of one."""
        scores = self.scores or Scores()
        known = ("recognised", scores.recognised) if scores.recognised else ("D", scores.judged)
        found: dict[str, tuple[frozenset[str], float]] = {}
        for name, of in (known, *scores.likeness.items()):
            if of:
                loras = frozenset(of)
                found[name] = (loras, fmean(of.values()))
                found[f"{LEAST}{name}"] = (loras, min(of.values()))
        return found | {name: (frozenset(), value) for name, value in self._whole.items()}

    @property
    def _whole(self) -> dict[str, float]:
        """What is of no single LoRA."""
        scores = self.scores or Scores()
        found = {"CLIP-T": scores.clip_text, "unlike bare": scores.unlike_bare}
        known = {name: value for name, value in found.items() if value is not None}
        return known | {"seconds": self.painted.seconds}

    @property
    def row(self) -> dict[str, float]:
        """What is known of it as columns of a table; D where there is no part to give."""
        found, scores = self._whole, self.scores or Scores()
        for name, d in scores.judged.items():
            part = scores.recognised.get(name)
            found |= {f"{name}: D": d} if part is None else {f"{name} recognised": part}
        for score, of in scores.likeness.items():
            found |= {f"{name} {score}": value for name, value in of.items()}
        return found


class GridFolder:
    """Where the pictures of grids are, by what they were asked for.

    history: what keeps the pictures, the folder's own `pictures/` unless given.

    Raises:
        ComposerError: it cannot be written to.
    """

    def __init__(self, folder: Path, history: History | None = None) -> None:
        check_writable(folder / INDEX)
        self.folder, self.history = folder, history or History(folder / "pictures")
        self._known: dict[str, Any] = {}
        path = folder / INDEX
        if path.is_file():
            try:
                self._known = parse_object(path.read_bytes())
            except ValueError as error:
                raise ComposerError(
                    f"{path} is damaged ({error}): delete it, and the pictures are painted again."
                ) from error

    def find(self, key: str) -> Painted | None:
        """The picture that was asked for by this key, if it is still there."""
        entry: Any = self._known.get(key)
        try:
            name, seconds = str(entry["picture"]), number(entry["seconds"])
        except (KeyError, TypeError, ValueError):
            return None
        path = self.history.folder / name
        if not path.resolve().is_relative_to(self.history.folder.resolve()) or not path.is_file():
            return None
        return Painted(saved=SavedPicture(id=name, path=path), seconds=seconds)

    def keep(self, key: str, painted: Painted) -> None:
        """Say which picture was asked for by this key."""
        self._known[key] = {"picture": painted.saved.id, "seconds": round(painted.seconds, 3)}
        write_atomically(self.folder / INDEX, json.dumps(self._known, indent=1).encode())


def keys_of(engine: Engine, cells: Cells) -> list[str]:
    """For each cell what is equal for requests that give the same picture: the model, the request
    and all files by what is in them."""
    keys: list[str] = []
    for _, asked, plan in cells:
        files = {**plan.paths, **plan.tool_paths}
        parts = [
            [engine.model.name, engine.model.hash, engine.model.vae_hash],
            asked.request.to_json(),
            plan.recipe.key,
            [repr(row) for row in (*plan.rows.values(), *plan.tools.values())],
            list(map(str, plan.pins)),
            [engine.read(name, path).sha256 for name, path in files.items()],
            [file_hash_of(card.path) for card in plan.embeddings],
            plan.hash,
        ]
        keys.append(hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest())
    return keys


def paint_grid(
    engine: Engine, folder: GridFolder, cells: Cells, cancelled: Callable[[], bool]
) -> Iterator[Event | Filled]:
    """Paint what is missing, as `paint_each`, and say which cells have their pictures.

    What is asked for twice is painted once, and what is fused alike comes together, so that a merge
    is made once for all its pictures. Progress names the cells by their numbers.
    """
    keys = keys_of(engine, cells)
    for n, key in enumerate(keys):
        if found := folder.find(key):
            yield Filled(cell=n, painted=found)
    places: dict[str, list[int]] = {}
    for n, key in enumerate(keys):
        places.setdefault(key, []).append(n)
    fused = [repr((plan.recipe, *plan.rows.values(), plan.pins)) for _, _, plan in cells]
    first = {fusion: n for n, fusion in reversed(list(enumerate(fused)))}
    missing = [some[0] for key, some in places.items() if not folder.find(key)]
    missing.sort(key=lambda n: first[fused[n]])
    batches = _batches(cells, missing)
    order = [n for batch in batches for n in batch]
    each = len(batches[0]) if batches else 1
    plans = [(_counted(cells[batch[0]][1], each), cells[batch[0]][2]) for batch in batches]
    done, since = 0, time.monotonic()
    for event in paint_each(engine, folder.history, plans, cancelled):
        if isinstance(event, Progress):
            now = [order[n] for n in event.pictures]
            step = now[1] - now[0] if len(now) > 1 else 1
            event = replace(event, pictures=range(now[0], now[-1] + 1, step), count=len(cells))
        yield event
        if isinstance(event, PictureSaved):
            seconds = (time.monotonic() - since) / each
            painted = Painted(saved=event.saved, seconds=seconds)
            key = keys[order[done]]
            folder.keep(key, painted)
            yield from (Filled(cell=n, painted=painted) for n in places[key])
            done += 1
            if done % each == 0:
                since = time.monotonic()


def _counted(asked: ComposeRequest, count: int) -> ComposeRequest:
    return replace(asked, request=replace(asked.request, count=count))


def _batches(cells: Cells, missing: Sequence[int]) -> list[list[int]]:
    """The missing cells as batches of equal size, each of requests whose seeds count up and that
    are alike otherwise: pictures made together take half the time, and are the same but for
    rounding. One by one where they do not fit.
    """
    found: list[list[int]] = []
    for n in missing:
        if found:
            first, asked = (cells[one][1] for one in (found[-1][0], n))
            seed = first.request.seed_of(len(found[-1]))
            same = replace(first, request=replace(first.request, seed=seed)) == asked
            if same and len(found[-1]) < AT_ONCE:
                found[-1].append(n)
                continue
        found.append([n])
    even = len({len(batch) for batch in found}) == 1
    return found if even else [[n] for n in missing]
