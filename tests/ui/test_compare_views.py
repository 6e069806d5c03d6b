"""What the page that compares is fed, and what it may send back."""

from __future__ import annotations

import base64
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
from composer.studio.comparing import USUAL, ways_of
from composer.ui import compare_views as views

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
    assert views.read_ways(first) == (USUAL, views.SEEDS) == views.read_ways(None)
    first["lines"][0]["on"] = False
    first["seeds"] = 4
    later = views.ways_view(first, [OFFER], ["old.safetensors: for another model"])
    assert views.read_ways(later) == (USUAL[1:], 4)
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
    + [{"lines": [], "seeds": seeds} for seeds in (True, 2.7, "2", None, 1e400)],
)
def test_a_choice_that_no_page_sends_is_refused(value: Any) -> None:
    with pytest.raises(ComposerError, match="Reload the page"):
        views.read_ways(value)


def test_the_grid_fills_and_ends(ways: tuple[Way, ...], picture: SavedPicture) -> None:
    empty = views.comparison_view(ways)
    assert empty["seeds"] == [str(2**64 - 1), "0"] and empty["sheet"] is None
    assert [ways[number].title for part in empty["suggested"] for number in part] == [
        "Your weights", "Weights of 1", "Learned gates",
    ]  # fmt: skip
    assert [way["gated"] for way in empty["ways"]] == [False] * (len(ways) - 1) + [True]
    assert empty["cells"] == [[None, None]] * len(ways)
    assert empty["id"] != views.comparison_view(ways)["id"]
    more = views.with_picture(empty, 1, 0, picture)
    assert empty["cells"][1][0] is None and more["cells"][1][1] is None
    assert image(more["cells"][1][0]).size == (384, 384)  # small ones are enlarged for the eye
    over = views.finished_view(more, ways, {(1, 0): picture})
    assert over["over"] and over["sheet"]["name"] == "comparison-0001-1.png"
    assert image(over["sheet"]["src"]).width > len(ways) * 256
    assert views.finished_view(empty, ways, {})["sheet"] is None
    json.dumps(over)


def test_a_large_picture_is_sent_smaller(tmp_path: Path) -> None:
    record = PictureRecord(request=Request(seed=1, width=1536, height=1024))
    large = History(tmp_path).save(Image.new("RGB", (1536, 1024)), record)
    assert image(views.picture_url(large)).size == (768, 512)


def test_progress_says_which_way_and_shows_each_picture_in_its_place(
    ways: tuple[Way, ...],
) -> None:
    preview = Image.new("RGB", (32, 16), "red")
    preview.paste("blue", (16, 0, 32, 16))
    progress = Progress(
        step=25, steps=160, pictures=range(2, 4), count=16, seconds_left=61.0, preview=preview
    )
    view = views.pace_view(progress, ways)
    assert view["title"] == "Zibo alone · pictures 3–4 of 16" and view["detail"] == "61 s left"
    assert view["cells"] == [[1, 0], [1, 1]]
    left, right = (
        image(address).convert("RGB").getpixel((190, 190)) for address in view["previews"]
    )
    assert left[0] > 240 > 20 > left[2] and right[2] > 240 > 20 > right[0]
    assert "src" not in view or view["src"] is None
    alone = Progress(step=1, steps=8, pictures=range(7, 8), count=8, seconds_left=2.0)
    told = views.pace_view(alone, ways)
    assert told["title"] == "Learned gates · picture 8 of 8" and told["previews"] == []


def test_how_it_ended(picture: SavedPicture) -> None:
    assert views.over_view(Finished(cancelled=True))["phase"] == "stopped"
    stopped = views.over_view(Finished(pictures=(picture,), cancelled=True, seconds=3))
    assert (stopped["phase"], stopped["title"]) == ("done", "Stopped")
    whole = views.over_view(Finished(pictures=(picture,) * 14, seconds=31))
    assert (whole["title"], whole["detail"]) == ("Compared", "14 pictures in 31 s")
