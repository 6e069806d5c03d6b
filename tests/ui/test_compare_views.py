"""What the page that compares is fed, and what it may send back."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from composer.diffusion.record import PictureRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import Gates, LoraRow, MixLora, Offer, Sum
from composer.studio import (
    ComposeRequest,
    Finished,
    History,
    Progress,
    SavedPicture,
    Way,
)
from composer.studio.comparing import USUAL, cells_of_ways, ways_of
from composer.studio.grid import Filled, Painted, Scores
from composer.ui import compare_views as views

GOOD: dict[str, Any] = {"lines": [], "seeds": 1, "scored": True, "axes": []}
THREE = [{"name": name, "values": "1"} for name in ("cfg", "steps", "seed")]  # two are the most
REQUEST = Request(prompt="a fox", seed=2**64 - 1, count=2, width=16, height=16)
PAIR = ComposeRequest(
    request=REQUEST, rows=(LoraRow(name="zibo"), LoraRow(name="neon", weight=0.5))
)
OFFER = Offer(
    recipe=Gates(file="pair"), loras=("neon", "zibo"), titles=("Neon", "Zibo"), description=""
)


@pytest.fixture
def ways() -> tuple[Way, ...]:
    return ways_of(PAIR, USUAL, [OFFER], str.title)


@pytest.fixture
def picture(tmp_path: Path) -> SavedPicture:
    record = PictureRecord(request=Request(prompt="a fox", seed=1, width=16, height=16))
    return History(tmp_path).save(Image.new("RGB", (16, 16), "teal"), record)


def image(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))


def test_the_choice_of_ways_survives_what_is_new_of_gates() -> None:
    first = views.ways_view()
    assert views.read_ways(first) == views.Choice() == views.read_ways(None)
    first["lines"][0]["on"] = False
    first["seeds"], first["scored"] = 4, False
    first["axes"] = [{"name": "cfg", "values": "2, 3"}, {"name": "", "values": ""}]
    later = views.ways_view(first, [OFFER], ["old.safetensors: for another model"])
    kept = views.Choice(lines=USUAL[1:], seeds=4, scored=False, axes=(("cfg", "2, 3"),))
    assert views.read_ways(later) == kept
    assert [axis.name for axis in kept.read_axes()] == ["cfg"]
    known = {variable["name"] for variable in later["variables"]}
    assert {"cfg", "sampler", "density", "energy:strength"} <= known and "file" not in known
    offered = {line["key"]: line["offers"] for line in later["lines"] if line["offers"]}
    assert offered == {"gates": [{"loras": ["neon", "zibo"], "just": True, "found_by": ""}]}
    assert len(later["problems"]) == 1
    known = replace(
        OFFER, recipe=Sum(), weights={"zibo": 0.8, "neon": 1.2}, found_by="best of 16 by CLIP"
    )
    latest = views.ways_view(later, [known, replace(OFFER, recipe=MixLora(file="m"), instead=True)])
    offered = {line["key"]: line["offers"] for line in latest["lines"] if line["offers"]}
    assert offered == {
        "best": [{"loras": ["neon", "zibo"], "just": True, "found_by": "best of 16 by CLIP"}],
        "mixlora": [{"loras": ["neon", "zibo"], "just": False, "found_by": ""}],
    }
    assert all(line["offered"] for line in latest["lines"] if line["offers"])
    json.dumps(latest)


@pytest.mark.parametrize(
    "value",
    ["ways", 3, {}, {"lines": [{}], "seeds": 1}, {"lines": [{"on": 1}]}]
    + [{**GOOD, "seeds": seeds} for seeds in (True, 2.7, "2", None, 1e400)]
    + [{**GOOD, "axes": axes} for axes in (None, 3, [3], [{"name": "cfg"}], THREE)],
)
def test_a_choice_that_no_page_sends_is_refused(value: Any) -> None:
    with pytest.raises(ComposerError, match="Reload the page"):
        views.read_ways(value)


@pytest.fixture
def sheet(ways: tuple[Way, ...]) -> views.Sheet:
    return views.Sheet(ways, *cells_of_ways(ways, ()), {"zibo": "Zibo"})


def test_the_grid_fills_and_ends(
    sheet: views.Sheet, ways: tuple[Way, ...], picture: SavedPicture
) -> None:
    empty = sheet.view
    assert empty["rows"] == [f"seed {2**64 - 1}", "seed 0"] and empty["files"] == []
    assert [ways[number].title for part in empty["suggested"] for number in part] == [
        "Your weights", "Weights of 1", "Learned gates",
    ]  # fmt: skip
    assert [way["gated"] for way in empty["ways"]] == [False] * (len(ways) - 1) + [True]
    assert empty["cells"] == [[None, None]] * len(ways)
    painted = Painted(saved=picture, seconds=2.0)
    sheet.fill(Filled(cell=1, painted=painted))  # the second way's first row
    more = sheet.view
    assert empty["cells"][1][0] is None and more["cells"][1][1] is None
    assert image(more["cells"][1][0]).size == (384, 384)  # small ones are enlarged for the eye
    assert more["scores"][1][0] is None and sheet.pictures == 1
    scores = Scores(judged={"zibo": 0.2, "neon": -0.1}, recognised={"zibo": 0.8})
    sheet.fill(Filled(cell=1, painted=painted, scores=scores))
    assert sheet.pictures == 1
    assert sheet.view["scores"][1][0] == {
        "loras": [
            {"title": "Zibo", "part": 0.8, "d": 0.2},
            {"title": "neon", "part": None, "d": -0.1},
        ],
        "bare": None,
    }
    over = sheet.finish()
    assert over["over"]
    names = {file["title"]: file["name"] for file in over["files"]}
    assert names == {
        "Grid": "comparison-0001-1.png",
        "Report": "comparison-0001-1.html",
        "CSV": "comparison-0001-1.csv",
        "CSV of ways": "comparison-0001-1-ways.csv",
        "JSON": "comparison-0001-1.json",
    }
    alone = [["80 %"], ["80 %"], ["2"]]
    assert over["standings"]["ways"] == [[1, alone]]
    assert over["standings"]["scores"] == ["recognised", "least recognised", "seconds"]
    assert any(note.startswith("recognised: ") for note in over["standings"]["notes"])
    grid, page, table, *_ = (file["src"] for file in over["files"])
    assert image(grid).width > len(ways) * 256 and page.startswith("data:text/html;base64,")
    (row,) = csv.DictReader(io.StringIO(base64.b64decode(table.split(",")[1]).decode()))
    assert (row["seed"], row["way"], row["seconds"]) == (str(2**64 - 1), "alone:zibo", "2.0")
    assert (row["zibo recognised"], row["neon: D"]) == ("0.8", "-0.1")
    json.dumps(over)


def test_a_grid_without_a_picture_has_nothing_to_take_away(
    sheet: views.Sheet, ways: tuple[Way, ...]
) -> None:
    assert sheet.finish()["files"] == []
    assert sheet.view["id"] != views.Sheet(ways, *cells_of_ways(ways, ()), {}).view["id"]


def test_a_large_picture_is_sent_smaller(tmp_path: Path) -> None:
    record = PictureRecord(request=Request(seed=1, width=1536, height=1024))
    large = History(tmp_path).save(Image.new("RGB", (1536, 1024)), record)
    assert image(views.picture_url(large)).size == (768, 512)


def test_progress_says_which_way_and_shows_the_picture_in_its_place(
    sheet: views.Sheet, picture: SavedPicture
) -> None:
    preview = Image.new("RGB", (32, 16), "red")
    preview.paste("blue", (16, 0, 32, 16))
    progress = Progress(
        step=25, steps=160, pictures=range(1, 10, 8), count=16, seconds_left=61.0, preview=preview
    )
    view = sheet.pace(progress)
    assert view["title"] == "Zibo alone · pictures 1–2 of 16" and view["detail"] == "61 s left"
    assert view["cells"] == [[1, 0], [1, 1]] and view.get("src") is None
    left, right = (
        image(address).convert("RGB").getpixel((190, 190)) for address in view["previews"]
    )
    assert left[0] > 240 > 20 > left[2] and right[2] > 240 > 20 > right[0]
    one = replace(progress, pictures=range(9, 10), preview=None)
    assert sheet.pace(one)["title"] == "Zibo alone · picture 1 of 16"
    sheet.fill(Filled(cell=3, painted=Painted(saved=picture, seconds=1.0)))
    looking = Progress(
        step=1, steps=16, pictures=range(15, 16), count=16, seconds_left=2.0, scoring=True
    )
    told = sheet.pace(looking)
    assert told["title"] == "Learned gates · scoring" and told["previews"] == []


def test_how_it_ended(picture: SavedPicture) -> None:
    assert views.over_view(Finished(cancelled=True), 0)["phase"] == "stopped"
    stopped = views.over_view(Finished(pictures=(picture,), cancelled=True, seconds=3), 1)
    assert (stopped["phase"], stopped["title"]) == ("done", "Stopped")
    whole = views.over_view(Finished(pictures=(picture,) * 14, seconds=31), 14)
    assert (whole["title"], whole["detail"]) == ("Compared", "14 pictures in 31 s")
    again = views.over_view(Finished(seconds=31), 14)
    assert (again["phase"], again["detail"]) == ("done", "all pictures were there already")
