"""A grid of pictures, painted into a folder; one that is there is not painted again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composer.clock import Clock
from composer.errors import ComposerError
from composer.files import check_writable, write_atomically
from composer.fusions import Plan
from composer.outside import number, parse_object
from composer.studio.axes import GridCell
from composer.studio.comparing import overall
from composer.studio.events import Event, Finished, PictureSaved, Progress, Started
from composer.studio.history import History, SavedPicture
from composer.studio.requests import ComposeRequest

if TYPE_CHECKING:
    from composer.studio.engine import Engine

INDEX = "painted.json"


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A picture of a grid, and how long it took."""

    saved: SavedPicture
    seconds: float


class GridFolder:
    """Where the pictures of a grid are, by what they were asked for.

    Raises:
        ComposerError: it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        check_writable(folder / INDEX)
        self.folder, self.history = folder, History(folder / "pictures")
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


def key_of(asked: ComposeRequest, plan: Plan, model: str, model_hash: str) -> str:
    """Equal for requests that give the same picture: the model, the request and all files by what
    is in them."""
    files = [*plan.paths.values(), *plan.tool_paths.values()]
    parts = [
        [model, model_hash],
        asked.request.to_json(),
        plan.recipe.key,
        [repr(row) for row in (*plan.rows.values(), *plan.tools.values())],
        list(map(str, plan.pins)),
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
        plan.hash,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def paint_grid(
    engine: Engine,
    folder: GridFolder,
    cells: Sequence[tuple[GridCell, ComposeRequest, Plan]],
    cancelled: Callable[[], bool],
) -> Iterator[Event]:
    """Paint what is missing, cell by cell; progress counts over all of these.

    Every file that cells need is read before the first picture is begun.

    Raises:
        ComposerError: a file cannot be used, or a cell cannot be.
    """
    from composer.studio.painting import paint

    for _, _, plan in cells:
        for name, path in plan.paths.items():
            engine.read(name, path)
    keys = [key_of(asked, plan, engine.model.name, engine.model.hash) for _, asked, plan in cells]
    fused = [(plan.recipe, tuple(plan.rows.values()), plan.pins) for _, _, plan in cells]
    # what is fused alike comes together: a merge is made once for all its pictures
    missing = [n for n, key in enumerate(keys) if folder.find(key) is None]
    missing.sort(key=lambda n: fused.index(fused[n]))
    begun, clock, noted = time.monotonic(), Clock(), set[str]()
    finished: list[SavedPicture] = []
    for place, index in enumerate(missing):
        if cancelled():
            break
        _, asked, plan = cells[index]
        since = time.monotonic()
        for event in paint(engine, folder.history, asked, plan, cancelled):
            if isinstance(event, Started):
                notes = tuple(note for note in event.notes if note not in noted)
                noted.update(notes)
                yield Started(loras=event.loras, notes=notes)
            elif isinstance(event, Progress):
                yield overall(event, place, len(missing), clock)
            elif isinstance(event, PictureSaved):
                painted = Painted(saved=event.saved, seconds=time.monotonic() - since)
                folder.keep(keys[index], painted)
                finished.append(event.saved)
                yield event
    yield Finished(
        pictures=tuple(finished), cancelled=cancelled(), seconds=time.monotonic() - begun
    )


def painted_cells(
    engine: Engine, folder: GridFolder, cells: Sequence[tuple[GridCell, ComposeRequest, Plan]]
) -> list[Painted | None]:
    """The pictures of all cells; None for one that is still missing."""
    model = engine.model
    return [folder.find(key_of(a, p, model.name, model.hash)) for _, a, p in cells]
