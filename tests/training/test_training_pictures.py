"""A folder of pictures and captions, in the three ways people keep them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, features

from composer.errors import ComposerError
from composer.training.pictures import read_folder


def picture(path: Path, size: tuple[int, int] = (16, 16), color: str = "red") -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def test_captions_beside_the_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a red\n square ", encoding="utf-8")
    read = read_folder(tmp_path, resolution=16, trigger="zibo")
    assert [found.caption for found in read] == ["a red square", "zibo"]
    assert not any(found.is_prior for found in read)


def test_captions_in_metadata(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    row = {"file_name": "a.png", "text": "a red square"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert read_folder(tmp_path, resolution=16)[0].caption == "a red square"


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a.TXT", "a.Caption"])
def test_a_caption_may_end_as_any_trainer_writes_it(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).write_text("a red square", encoding="utf-8")
    (tmp_path / "b.caption").write_text("of no picture", encoding="utf-8")
    assert read_folder(tmp_path, resolution=16, trigger="florp")[0].caption == "a red square"


@pytest.mark.parametrize("name", ["./a.png", "a.png", ".\\a.png"])
def test_metadata_may_name_paths(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    row = json.dumps({"file_name": name, "text": "a red square"})
    (tmp_path / "metadata.jsonl").write_text(row, encoding="utf-8")
    assert read_folder(tmp_path, resolution=16, trigger="florp")[0].caption == "a red square"


@pytest.mark.parametrize("name", ["a.gif", "a.tiff", "a.avif", "a.jfif"])
def test_pictures_of_other_endings(tmp_path: Path, name: str) -> None:
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    picture(tmp_path / "b.png")
    Image.new("RGB", (16, 16), "red").save(tmp_path / name, "JPEG" if name == "a.jfif" else None)
    assert len(read_folder(tmp_path, resolution=16, trigger="florp")) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.heic", "", r"a\.heic is a picture of a kind that is not read"),
        ("a.json", "{}", r"a\.json would not be read: write captions into files that end in \.txt"),
        ("a.tags", "red", r"a\.tags would not be read"),
        ("metadata.csv", "file_name,text", r"metadata\.csv would not be read"),
        (
            "metadata.jsonl",
            '{"file_name": "sub/a.png", "text": "red"}\n{"file_name": "c.png", "text": ""}',
            r"has a caption for c\.png and 1 more, which is not among the folder's pictures",
        ),
    ],
)
def test_what_would_not_be_read_is_said(tmp_path: Path, name: str, text: str, message: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ComposerError, match=message):
        read_folder(tmp_path, resolution=16, trigger="florp")


def test_squares_and_flattens(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    wide.paste((0, 0, 255, 255), (0, 0, 5, 20))  # outside the centre
    wide.save(tmp_path / "a.png")
    image = read_folder(tmp_path, resolution=16, trigger="x")[0].image
    assert image.mode == "RGB"
    assert image.size == (16, 16)
    assert image.getpixel((8, 8)) == (255, 255, 255)


def test_turns_as_the_camera_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    turned = read_folder(tmp_path, resolution=16, trigger="x")[0].image
    assert turned.getpixel((15, 15)) == (0, 0, 0)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match="no folder"):
        read_folder(tmp_path / "missing", resolution=16)
    (tmp_path / "10_fox").mkdir()
    with pytest.raises(ComposerError, match=r"no pictures.*10_fox"):
        read_folder(tmp_path, resolution=16)
    picture(tmp_path / "a.png")
    with pytest.raises(ComposerError, match=r"a\.png has no caption.*trigger"):
        read_folder(tmp_path, resolution=16)
    (tmp_path / "metadata.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(ComposerError, match="line 1"):
        read_folder(tmp_path, resolution=16)


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(ComposerError, match=r"a\.png cannot be read"):
        read_folder(tmp_path, resolution=16, trigger="x")
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    path.unlink()
    noise.save(tmp_path / "b.jpg", quality=95)
    whole = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ComposerError, match=r"b\.jpg breaks off"):
        read_folder(tmp_path, resolution=16, trigger="x")
    (tmp_path / "b.jpg").unlink()
    picture(tmp_path / "c.png", (7, 100))
    with pytest.raises(ComposerError, match=r"c\.png has only 7x100"):
        read_folder(tmp_path, resolution=16, trigger="x")


def test_a_huge_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(ComposerError, match="9000x9000"):
        read_folder(tmp_path, resolution=16, trigger="x")
