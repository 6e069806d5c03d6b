from __future__ import annotations

import base64
import math
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from composer.diffusion.record import LoraRecord, PictureRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.experts.card import Card
from composer.experts.info import LoraInfo
from composer.fusions import LoraRow, Sum, read_recipe
from composer.studio import (
    ComposeRequest,
    Finished,
    History,
    Progress,
    Queued,
    SavedPicture,
)
from composer.ui import views
from composer.ui.examples import choose_examples

EVIL = "<img src=x onerror=alert(1)>${alert(2)}`{{value}}"


def card(name: str, role: str = "other", **info: object) -> Card:
    return Card(
        name=name,
        path=Path(f"{name}.safetensors"),
        facts=LoraInfo(title=name, role=role, **info),  # pyright: ignore[reportArgumentType]
        size=1,
    )


@pytest.fixture
def evil_picture(tmp_path: Path) -> SavedPicture:
    record = PictureRecord(
        request=Request(prompt=EVIL, negative_prompt=EVIL, seed=1, width=16, height=16),
        loras=(LoraRecord(name=EVIL),),
        model_name=EVIL,
    )
    return History(tmp_path).save(Image.new("RGB", (16, 16)), record)


def test_markup_in_what_strangers_wrote_is_text(evil_picture: SavedPicture) -> None:
    evil = card(EVIL, "style", trigger=EVIL)
    markup = views.recipe(evil_picture, {EVIL: evil})
    assert "<img" not in markup and "&lt;img src=x onerror=alert(1)&gt;" in markup
    assert "<img" not in views.download(evil_picture)
    assert "<" not in views.escaped(ComposerError(EVIL))


def test_components_of_ours_never_put_values_into_their_template() -> None:
    static = Path(views.__file__).parent / "static"
    for template in static.glob("*.html"):
        text = template.read_text(encoding="utf-8")
        assert "${" not in text and "{{" not in text, template
    for script in static.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text, script


def test_a_small_picture_is_shown_large_and_downloaded_as_it_is(evil_picture: SavedPicture) -> None:
    shown = views.picture_view(evil_picture)["src"]
    assert isinstance(shown, str) and shown.startswith("data:image/png;base64,")
    whole = base64.b64encode(evil_picture.path.read_bytes()).decode()
    assert whole in views.download(evil_picture) and whole not in shown


def test_rows_come_back_from_the_browser() -> None:
    rows = (LoraRow(name="zibo", weight=0.5, text_encoder=0.1), LoraRow(name="neon", on=False))
    assert views.read_rows([views.row_view(row, None, Sum()) for row in rows], "weighted") == rows
    assert views.read_rows(None, "nla") == ()


@pytest.mark.parametrize("value", ["rows", 3, [3], [{"name": "zibo"}]])
def test_rows_that_no_page_sends_are_refused(value: object) -> None:
    with pytest.raises(ComposerError, match="Reload the page"):
        views.read_rows(value, "weighted")


@pytest.mark.parametrize("value", [True, "x", "1", None, [1], math.nan, math.inf, 10**400])
@pytest.mark.parametrize("field", ["weight", "strength", "steps", "depth", "text_encoder"])
def test_numbers_that_no_page_sends_are_refused(field: str, value: object) -> None:
    if (field, value) == ("text_encoder", None):
        return  # as the U-Net's
    line = views.row_view(LoraRow(name="zibo"), None, Sum())
    line[field] = [0, value] if field in ("steps", "depth") else value
    with pytest.raises(ComposerError, match="Reload the page"):
        views.read_rows([line], "gates:pair" if field == "strength" else "weighted")


def test_progress_is_told_in_words() -> None:
    progress = Progress(step=3, steps=12, pictures=range(2, 4), count=8, seconds_left=4.21)
    view = views.event_view(progress)
    assert (view["title"], view["detail"]) == ("Step 3 of 12 · pictures 3–4 of 8", "4.2 s left")
    assert view["fraction"] == 0.25
    assert views.event_view(Queued(ahead=2))["title"] == "Waiting for 2 other jobs"
    assert views.event_view(Queued(ahead=0))["title"] == "Waiting for the model"
    assert views.ended(Finished(seconds=70.4)).endswith("70 s")


def test_a_file_that_cannot_be_used_is_a_problem_and_no_card() -> None:
    broken = Card(name="b", path=Path("b"), facts=LoraInfo(), size=0, error="b: cut off")
    view = views.library_view([card("a", "style", trigger="neon style"), broken])
    assert [entry["name"] for entry in view["cards"]] == ["a"]
    assert "neon style" in view["cards"][0]["haystack"]
    assert view["problems"] == ["b: cut off"]


def test_a_card_says_what_share_of_its_file_is_at_work() -> None:
    def facts(share: float | None) -> str:
        return views.card_view(card("a", kinds=("LoHa",), share=share), None)["facts"]

    assert facts(0.997) == "LoHa · 99 % of it fits this model"
    assert facts(None) == facts(1.0) == "LoHa"


def test_a_damaged_picture_does_not_spoil_the_strip(evil_picture: SavedPicture) -> None:
    beside = evil_picture.path.with_name("0002-1.png")
    beside.write_bytes(b"no picture")
    history = History(evil_picture.path.parents[1])
    broken, sound = views.strip_view(history.recent(5), None)["pictures"]
    assert sound["id"] == evil_picture.id
    assert sound["thumbnail"].startswith("data:image/webp;base64,")
    assert (broken["thumbnail"], broken["title"][:11]) == ("", "0002-1.png:")
    assert "cannot be read" in broken["title"]


def test_a_picture_of_an_unknown_fusion_is_shown(tmp_path: Path) -> None:
    record = PictureRecord(request=Request(seed=1), fusion={"name": "<magic>"})
    saved = History(tmp_path).save(Image.new("RGB", (16, 16)), record)
    assert "&lt;magic&gt;" in views.recipe(saved, {})


def test_a_broken_preview_hides_no_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preview = tmp_path / "a.png"
    preview.write_bytes(b"no picture")
    assert views.library_view([card("a", preview=preview)])["cards"][0]["thumbnail"] == ""
    Image.new("1", (8000, 8000)).save(preview)  # small on the disk, large in memory
    assert views.library_view([card("a", preview=preview)])["cards"][0]["thumbnail"] == ""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**20)  # Pillow itself refuses to open it
    os.utime(preview, ns=(1, 1))
    assert views.library_view([card("a", preview=preview)])["cards"][0]["thumbnail"] == ""
    Image.new("RGB", (64, 64)).save(preview)
    thumbnail = views.library_view([card("a", preview=preview)])["cards"][0]["thumbnail"]
    assert thumbnail.startswith("data:image/webp;base64,")


def test_examples_name_loras_of_the_roles_they_need() -> None:
    cards = [
        card("zibo", "character", trigger="zibo fox"),
        card("neon", "style", trigger="neon style"),
        card("blank", "style"),
    ]
    (first, *_) = choose_examples(cards, 4)
    assert set(first.loras) == {"zibo", "neon"}
    assert "zibo fox" in first.prompt and "neon style" in first.prompt
    assert choose_examples([card("blank")], 4) == ()


@pytest.mark.parametrize(
    "chosen",
    [
        None, True, 3, [], {}, "", "magic", "gates", "gates:", "nla:x", "weighted:",
        "ties:rank=1e3", "ties:density=nan", "ties:density", "svd:rank=0", "ties:trim=all",
    ],
)  # fmt: skip
def test_a_fusion_that_no_page_sends_is_told(chosen: Any) -> None:
    with pytest.raises(ComposerError, match=r"fusion|density|rank|trim"):
        read_recipe(chosen)


def test_more_loras_than_a_picture_takes_are_told() -> None:
    with pytest.raises(ComposerError, match="101 LoRAs are chosen; 100 are the most"):
        ComposeRequest(rows=tuple(LoraRow(name=str(n)) for n in range(101)))
