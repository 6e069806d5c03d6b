from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from composer.diffusion.record import LoraRecord, PictureRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.studio import History

RECORD = PictureRecord(
    request=Request(prompt="a <b>fox</b>", seed=5, width=16, height=16),
    loras=(LoraRecord(name="zibo", unet=0.5, text_encoder=0.25), LoraRecord(name="neon")),
    fusion={"name": "nla"},
)
PICTURE = Image.new("RGB", (16, 16), "teal")


def test_pictures_are_numbered_within_a_day_and_found_again(tmp_path: Path) -> None:
    history = History(tmp_path / "outputs")
    first, second = history.save(PICTURE, RECORD), history.save(PICTURE, RECORD)
    assert [saved.path.name for saved in (first, second)] == ["0001-5.png", "0002-5.png"]
    assert History(tmp_path / "outputs").recent(5) == (second, first)
    assert history.recent(1) == (second,)
    assert history.find(first.id).record == RECORD


def test_its_loras_are_read_back(tmp_path: Path) -> None:
    saved = History(tmp_path).save(PICTURE, RECORD)
    assert [(row.name, row.unet, row.text_encoder) for row in saved.rows] == [
        ("zibo", 0.5, 0.25),
        ("neon", 1.0, None),
    ]


def test_the_enlarged_picture_says_the_same(tmp_path: Path) -> None:
    saved = History(tmp_path / "outputs").save(PICTURE, RECORD)
    enlarged = tmp_path / "enlarged.png"
    enlarged.write_bytes(saved.shown(96))
    with Image.open(enlarged) as image:
        assert image.size == (96, 96)
    assert History(tmp_path).read(enlarged).record == saved.record
    assert saved.shown(16) == saved.path.read_bytes()


@pytest.mark.parametrize("identity", ["", "../secret.png", "/etc/passwd", "2026-01-01/0009-1.png"])
def test_an_id_is_looked_up_and_never_a_path(tmp_path: Path, identity: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    history = History(tmp_path / "outputs")
    history.save(PICTURE, RECORD)
    with pytest.raises(ComposerError, match="is gone"):
        history.find(identity)


def test_a_picture_that_does_not_say_is_refused(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "mute.png")
    with pytest.raises(ComposerError, match="does not say how it was made"):
        History(tmp_path).read(tmp_path / "mute.png")


def test_what_only_looks_like_a_picture_is_none(tmp_path: Path) -> None:
    history = History(tmp_path)
    saved = history.save(PICTURE, RECORD)
    (saved.path.parent / "0002-5.png.part").touch()
    (saved.path.parent / "notes.png").touch()
    assert history.recent(5) == (saved,)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    saved = History(tmp_path).save(PICTURE, RECORD)
    saved.path.write_bytes(saved.path.read_bytes()[:-30])
    with pytest.raises(ComposerError, match=r"0001-5\.png is damaged"):
        saved.shown(96)


def test_no_pictures_yet(tmp_path: Path) -> None:
    assert History(tmp_path / "nowhere").recent(3) == ()
