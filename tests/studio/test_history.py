from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from composer.diffusion import png
from composer.diffusion.record import LoraRecord, PictureRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.files import temporary
from composer.studio import History, Studio

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
    assert [(row.name, row.weight, row.text_encoder) for row in saved.rows] == [
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


def test_a_gate_map_that_was_left_alone_is_no_other_pictures(tmp_path: Path) -> None:
    saved = History(tmp_path).save(PICTURE, RECORD)
    saved.path.rename(saved.gates_path)  # as if killed between the two files
    assert History(tmp_path).save(PICTURE, RECORD).path.name == "0002-5.png"


def save_many(folder: Path, seed: int, count: int, ready: Barrier) -> None:
    ready.wait(60)
    record = PictureRecord(request=Request(prompt="a fox", seed=seed))
    for _ in range(count):
        History(folder).save(PICTURE, record)


def test_processes_lose_no_picture_and_use_no_number_twice(tmp_path: Path) -> None:
    seeds, count = (5, 5, 6), 30
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(len(seeds))
    writers = [fork.Process(target=save_many, args=(tmp_path, s, count, ready)) for s in seeds]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    saved = History(tmp_path).recent(1000)
    assert len(saved) == len(seeds) * count
    assert len({picture.path.name.partition("-")[0] for picture in saved}) == len(saved)
    assert sorted(picture.record.request.seed for picture in saved) == sorted(count * [*seeds])
    assert {path.suffix for path in saved[0].path.parent.iterdir()} == {".png"}


def record_with(**change: object) -> str:
    return json.dumps(json.loads(RECORD.to_json()) | change)


def request_with(**change: object) -> str:
    return record_with(request=RECORD.request.to_json() | change)


BAD_RECORDS = {
    "a number of 5,000 digits": request_with(seed=5).replace('"seed": 5', f'"seed": {"9" * 5000}'),
    "arrays beyond the recursion limit": record_with(fusion={"name": []}).replace(
        "[]", "[" * 5000 + "]" * 5000
    ),
    "arrays that JSON reads and nothing else": record_with(fusion={"name": []}).replace(
        "[]", "[" * 400 + "]" * 400
    ),
    "an integer too large for a float": record_with(loras=[{"name": "a", "unet": 0}]).replace(
        '"unet": 0', f'"unet": {10**400}'
    ),
    "a float beyond all": request_with(cfg_scale=0).replace('"cfg_scale": 0', '"cfg_scale": 1e999'),
    "half a letter": request_with(prompt="\ud800"),
    "half a letter in a name": record_with(loras=[{"name": "\udfff"}]),
    "no fusion": record_with(fusion=None),
    "steps that are true": request_with(steps=True),
    "steps with a fraction": request_with(steps=2.7),
    "a weight that is true": record_with(loras=[{"name": "a", "unet": True}]),
    "more LoRAs than anybody uses": record_with(loras=[{"name": str(n)} for n in range(101)]),
    "a prompt without end": request_with(prompt="a" * 70_000),
}


@pytest.mark.parametrize("text", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_is_a_message_and_the_others_are_there(tmp_path: Path, text: str) -> None:
    history = History(tmp_path)
    good = history.save(PICTURE, RECORD)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("composer", text)
    PICTURE.save(good.path.with_name("0002-1.png"), pnginfo=texts)
    bad, also = history.recent(5)
    assert also.record == RECORD
    with pytest.raises(ComposerError):
        _ = bad.record
    with pytest.raises(ComposerError):
        history.read(bad.path)


def test_what_is_no_picture_is_a_message_whatever_is_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(tmp_path)
    good = history.save(PICTURE, RECORD)
    good.path.with_name("0003-1.png").mkdir()
    good.path.with_name("0004-1.png").write_bytes(good.path.read_bytes()[:40])
    history.save(PICTURE.resize((64, 64)), RECORD)
    monkeypatch.setattr(png, "MAX_PIXELS", 64 * 63)
    *bad, also = history.recent(9)
    assert also == good and len(bad) == 3
    for picture in bad:
        asks: tuple[Callable[[], object], ...] = (
            lambda picture=picture: picture.record,
            picture.image,
            lambda picture=picture: picture.shown(384),
        )
        for ask in asks:
            with pytest.raises(ComposerError, match=picture.path.name):
                ask()


def test_the_largest_picture_is_one_that_composer_paints() -> None:
    assert png.MAX_PIXELS == 8192**2 < 13_000**2


def test_what_killed_writers_have_left_is_cleaned_when_a_studio_starts(tmp_path: Path) -> None:
    outputs, loras = tmp_path / "outputs", tmp_path / "loras"
    saved = History(outputs).save(PICTURE, RECORD)
    folders = [saved.path.parent, outputs / "trainings" / "both", loras]
    folders += [loras / kind for kind in ("gates", "weights", "mixlora")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        temporary(folder / "a.safetensors", "0123abcd").touch()
    temporary(saved.path.parent / "0002", "00000000").touch()
    studio = Studio(tmp_path / "no model", [loras], outputs)
    assert studio.wait().state == "failed"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [saved.path]
    assert History(outputs).save(PICTURE, RECORD).path.name == "0002-5.png"
