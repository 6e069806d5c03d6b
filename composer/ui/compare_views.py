"""What the components of the page that compares are fed, and what they send back."""

from __future__ import annotations

import base64
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from composer.diffusion.display import enlarge
from composer.errors import ComposerError
from composer.fusions import Offer
from composer.outside import whole
from composer.studio import Finished, Progress, SavedPicture, Way
from composer.studio.axes import Axis, GridCell, read_axis, variables
from composer.studio.comparing import LINES, MOST_SEEDS, USUAL, line_of, suggested
from composer.ui.views import SHOWN_SIDE, data_url, ended, preview_url, progress_view

if TYPE_CHECKING:
    from PIL import Image

    from composer.studio.grid import Filled, Scores

Json = dict[str, Any]

MAX_SIDE = 768  # of a picture on the page; the history has it in full
SEEDS = 2
AXES = 2
"""How many things more can be varied at once."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the page says is to be compared."""

    lines: tuple[str, ...] = USUAL
    seeds: int = SEEDS
    scored: bool = True
    axes: tuple[tuple[str, str], ...] = ()  # what is varied, and its values as they were written

    def read_axes(self) -> tuple[Axis, ...]:
        """The axes; ComposerError where one cannot be."""
        return tuple(read_axis(f"{name}={values}") for name, values in self.axes)


def ways_view(
    value: object = None, offers: Iterable[Offer] = (), problems: Iterable[str] = ()
) -> Json:
    """The choice of ways as it is, each with what is offered for it now: `just` for its LoRAs, or
    for any of them."""
    choice = read_ways(value)
    offers = tuple(offers)
    return {
        "lines": [
            {
                **asdict(line),
                "key": key,
                "on": key in choice.lines,
                "offers": [
                    {
                        "loras": list(o.loras),
                        "just": not o.instead,
                        "found_by": o.found_by,
                    }
                    for o in offers
                    if line_of(o) == key
                ],
            }
            for key, line in LINES.items()
        ],
        "seeds": choice.seeds,
        "most": MOST_SEEDS,
        "scored": choice.scored,
        "axes": [{"name": name, "values": values} for name, values in choice.axes],
        "most_axes": AXES,
        "variables": [asdict(variable) for variable in variables()],
        "problems": list(problems),
    }


def read_ways(value: object) -> Choice:
    """What the page sends of it.

    Raises:
        ComposerError: no page of ours sends such a thing.
    """
    if value is None:
        return Choice()
    try:
        given = cast("dict[str, Any]", value)
        on = {str(line["key"]) for line in given["lines"] if line["on"]}
        axes = [(str(axis["name"]), str(axis["values"])) for axis in given["axes"]]
        if len(axes) > AXES:
            raise ValueError(axes)
        return Choice(
            lines=tuple(key for key in LINES if key in on),
            seeds=whole(given["seeds"]),
            scored=bool(given["scored"]),
            axes=tuple(axis for axis in axes if any(axis)),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise ComposerError("The page sent an unknown choice of ways. Reload the page.") from error


class Sheet:
    """The grid of one comparison as it fills: ways across, and down seeds and what else varies.

    titles: what people call a LoRA, by its name.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        axes: Sequence[Axis],
        cells: Sequence[GridCell],
        titles: Mapping[str, str],
    ) -> None:
        self._ways, self._axes, self._cells, self._titles = ways, axes, cells, titles
        self._filled: dict[int, Filled] = {}
        down = [cell.labels[:-1] for cell in cells[:: len(ways)]]
        rows = [
            " · ".join(axis.titled(label) for axis, label in zip(axes, labels, strict=False))
            for labels in down
        ]
        self.view: Json = {
            "id": secrets.token_hex(8),
            "ways": [
                {
                    "title": w.title,
                    "detail": w.detail,
                    "line": w.line,
                    "gated": w.asked.recipe.gated,
                }
                for w in ways
            ],
            "suggested": suggested(ways),
            "rows": rows,
            "cells": [[None] * len(rows) for _ in ways],
            "scores": [[None] * len(rows) for _ in ways],
            "over": False,
            "files": [],
            "standings": {"scores": [], "ways": [], "notes": []},
        }

    @property
    def pictures(self) -> int:
        """How many are there."""
        return len(self._filled)

    def fill(self, filled: Filled) -> None:
        """One more picture, or its scores."""
        way, row = self._place(filled.cell)
        if filled.cell not in self._filled:
            self._set("cells", way, row, picture_url(filled.painted.saved))
        self._filled[filled.cell] = filled
        if filled.scores is not None:
            self._set("scores", way, row, scores_view(filled.scores, self._titles))

    def _place(self, cell: int) -> tuple[int, int]:
        """The way and the row of a cell."""
        row, way = divmod(cell, len(self._ways))
        return way, row

    def _set(self, part: str, way: int, row: int, value: Any) -> None:
        grid = [list(column) for column in self.view[part]]
        grid[way][row] = value
        self.view = {**self.view, part: grid}

    def finish(self) -> Json:
        """The grid when nothing more comes, with its files to take away."""
        self.view = {
            **self.view,
            "over": True,
            "files": self._files(),
            "standings": self._standings(),
        }
        return self.view

    def _standings(self) -> Json:
        """The scores of each way: by way its number and for each score its lines."""
        from composer.evaluation.report import by_way
        from composer.studio.grid_report import WHOLES, notes_on, standings_of

        standings, against = standings_of(self._cells, self._filled)
        scores, ways = by_way(standings)
        number = {way.key: n for n, way in enumerate(self._ways)}
        title = self._ways[number[against]].title if against else ""
        return {
            "scores": scores,
            "ways": [
                [
                    number[way],
                    [[*one.lines(WHOLES.get(one.score, 0))] if one else [] for one in row],
                ]
                for way, row in ways.items()
            ],
            "notes": notes_on(standings, title),
        }

    def _files(self) -> list[Json]:
        from composer.studio.grid_report import report_of

        if not self._filled:
            return []
        prompt = self._ways[0].asked.request.prompt
        files = report_of(prompt, self._axes, self._cells, self._filled)
        stem = f"comparison-{self._filled[min(self._filled)].painted.saved.path.stem}"
        return [
            {
                "title": title,
                "name": f"{stem}{ending}",
                "src": f"data:{kind};base64,{base64.b64encode(files[name]).decode()}",
            }
            for name, title, kind, ending in FILES
            if name in files
        ]

    def pace(self, progress: Progress) -> Json:
        """How far the whole comparison is, and what the picture that is being made looks like."""
        places = [self._place(number) for number in progress.pictures]
        view = progress_view(replace(progress, preview=None))
        first = self.pictures + 1
        last = min(self.pictures + len(places), progress.count)
        which = f"picture {first}" if first >= last else f"pictures {first}–{last}"
        done = "scoring" if progress.scoring else f"{which} of {progress.count}"
        tiles = _tiles(progress.preview, len(places)) if progress.preview else []
        return {
            **view,
            "title": f"{self._ways[places[0][0]].title} · {done}",
            "cells": [list(place) for place in places],
            "previews": [preview_url(tile) for tile in tiles],
        }


def _tiles(preview: Image.Image, many: int) -> list[Image.Image]:
    """The pictures of a preview, which has them in a near-square grid."""
    columns = math.ceil(math.sqrt(many))
    width, height = preview.width // columns, preview.height // math.ceil(many / columns)
    corners = [((i % columns) * width, (i // columns) * height) for i in range(many)]
    return [preview.crop((x, y, x + width, y + height)) for x, y in corners]


FILES = (
    ("grid.png", "Grid", "image/png", ".png"),
    ("index.html", "Report", "text/html", ".html"),
    ("scores.csv", "CSV", "text/csv", ".csv"),
    ("ways.csv", "CSV of ways", "text/csv", "-ways.csv"),
    ("scores.json", "JSON", "application/json", ".json"),
)
"""What of a report can be taken away: its name, its title here, its media type, and how its name
ends here."""


def scores_view(scores: Scores, titles: Mapping[str, str]) -> Json:
    """The scores under a picture: each LoRA's, and what is left of the bare model's picture."""
    return {
        "loras": [
            {"title": titles.get(name, name), "part": scores.recognised.get(name), "d": d}
            for name, d in scores.judged.items()
        ],
        "bare": scores.unlike_bare,
    }


def picture_url(picture: SavedPicture) -> str:
    """A picture as an address, in the size in which it is looked at."""
    image = enlarge(picture.image(), SHOWN_SIDE)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return data_url(image, "WEBP", quality=92)


def over_view(event: Finished, pictures: int) -> Json:
    """How a comparison ended, of which so many pictures are there."""
    if not pictures:
        return {"phase": "stopped", "title": "Stopped", "fraction": 0.0}
    title = "Stopped" if event.cancelled else "Compared"
    made = ended(event) if event.pictures else "all pictures were there already"
    return {"phase": "done", "title": title, "detail": made, "fraction": 1.0}
