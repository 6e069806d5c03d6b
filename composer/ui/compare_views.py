"""What the components of the page that compares are fed, and what they send back."""

from __future__ import annotations

import base64
import io
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from PIL import Image

from composer.diffusion.display import enlarge
from composer.errors import ComposerError
from composer.fusions import Offer
from composer.outside import whole
from composer.studio import Finished, Progress, SavedPicture, Way
from composer.studio.comparing import LINES, MOST_SEEDS, USUAL, line_of, suggested
from composer.studio.comparison_sheet import comparison_sheet
from composer.ui.views import SHOWN_SIDE, data_url, ended, preview_url, progress_view

Json = dict[str, Any]
Places = Mapping[tuple[int, int], SavedPicture]  # by the numbers of their way and seed

MAX_SIDE = 768  # of a picture on the page; the history has it in full
SEEDS = 2


def ways_view(
    value: object = None, offers: Iterable[Offer] = (), problems: Iterable[str] = ()
) -> Json:
    """The choice of ways as it is, each with what is offered for it now: `just` for its LoRAs, or
    for any of them."""
    lines, seeds = read_ways(value)
    offers = tuple(offers)
    return {
        "lines": [
            {
                **asdict(line),
                "key": key,
                "on": key in lines,
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
        "seeds": seeds,
        "most": MOST_SEEDS,
        "problems": list(problems),
    }


def read_ways(value: object) -> tuple[tuple[str, ...], int]:
    """Which lines are wanted, and for how many seeds.

    Raises:
        ComposerError: no page of ours sends such a thing.
    """
    if value is None:
        return USUAL, SEEDS
    try:
        given = cast("dict[str, Any]", value)
        on = {str(line["key"]) for line in given["lines"] if line["on"]}
        return tuple(key for key in LINES if key in on), whole(given["seeds"])
    except (TypeError, KeyError, ValueError) as error:
        raise ComposerError("The page sent an unknown choice of ways. Reload the page.") from error


def comparison_view(ways: Sequence[Way]) -> Json:
    """The grid before any picture is there."""
    request = ways[0].asked.request
    return {
        "id": secrets.token_hex(8),
        "ways": [
            {"title": w.title, "detail": w.detail, "line": w.line, "gated": w.asked.recipe.gated}
            for w in ways
        ],
        "suggested": suggested(ways),
        # as text, for a browser's numbers have 53 bits
        "seeds": [str(request.seed_of(number)) for number in range(request.count)],
        "cells": [[None] * request.count for _ in ways],
        "over": False,
        "sheet": None,
    }


def with_picture(view: Json, way: int, seed: int, picture: SavedPicture) -> Json:
    """The grid with one more picture."""
    cells = [list(row) for row in view["cells"]]
    cells[way][seed] = picture_url(picture)
    return {**view, "cells": cells}


def picture_url(picture: SavedPicture) -> str:
    """A picture as an address, in the size in which it is looked at."""
    image = enlarge(picture.image(), SHOWN_SIDE)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return data_url(image, "WEBP", quality=92)


def finished_view(view: Json, ways: Sequence[Way], places: Places) -> Json:
    """The grid when nothing more comes, to be taken away as one picture."""
    sheet = None
    if places:
        buffer = io.BytesIO()
        comparison_sheet(ways, places).save(buffer, "PNG")
        address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        name = f"comparison-{places[min(places)].path.stem}.png"
        sheet = {"src": address, "name": name}
    return {**view, "over": True, "sheet": sheet}


def pace_view(progress: Progress, ways: Sequence[Way]) -> Json:
    """How far the whole comparison is, and what the pictures that are being made look like."""
    seeds = progress.count // len(ways)
    first, last = progress.pictures.start + 1, progress.pictures.stop
    which = f"picture {first}" if first == last else f"pictures {first}–{last}"
    tiles = _tiles(progress.preview, len(progress.pictures)) if progress.preview else []
    view = progress_view(replace(progress, preview=None))
    return {
        **view,
        "title": f"{ways[progress.pictures.start // seeds].title} · {which} of {progress.count}",
        "cells": [list(divmod(number, seeds)) for number in progress.pictures],
        "previews": [preview_url(tile) for tile in tiles],
    }


def _tiles(preview: Image.Image, many: int) -> list[Image.Image]:
    """The pictures of a preview, which has them in a near-square grid."""
    columns = math.ceil(math.sqrt(many))
    width, height = preview.width // columns, preview.height // math.ceil(many / columns)
    corners = [((i % columns) * width, (i // columns) * height) for i in range(many)]
    return [preview.crop((x, y, x + width, y + height)) for x, y in corners]


def over_view(event: Finished) -> Json:
    """How a comparison ended."""
    if not event.pictures:
        return {"phase": "stopped", "title": "Stopped", "fraction": 0.0}
    title = "Stopped" if event.cancelled else "Compared"
    return {"phase": "done", "title": title, "detail": ended(event), "fraction": 1.0}
