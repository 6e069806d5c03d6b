"""Pictures carry how they were made, for us and for other programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from composer.diffusion.display import enlarge
from composer.diffusion.parameters import from_parameters, to_parameters
from composer.diffusion.png import read_png, write_png
from composer.diffusion.record import LoraRecord, PictureRecord
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import RECIPES

RECORD = PictureRecord(
    request=Request(
        prompt="a fox, näive\nsecond: line <lora:wren v1.2:0.8>",
        negative_prompt="blue, bad",
        seed=7,
        steps=12,
        cfg_scale=3.5,
        sampler="DPM++ 2M Karras",
        width=64,
        height=96,
        clip_skip=2,
    ),
    loras=(
        LoraRecord(
            name="wren v1.2", unet=0.8, text_encoder=0.8, sha256="a" * 64, tensor_hash="b" * 64
        ),
        LoraRecord(name="neon", unet=1, text_encoder=0.5, tensor_hash="c" * 64),
    ),
    fusion={"name": "nla", "settings": {"sum": 1}},
    model_name="toybox, small",
    model_hash="d" * 64,
)
IMAGE = Image.new("RGB", (64, 96), (1, 2, 3))


def test_a_picture_comes_back_whole(tmp_path: Path) -> None:
    path = write_png(tmp_path / "fox.png", IMAGE, RECORD)
    assert read_png(path) == RECORD
    with Image.open(path) as image:
        assert image.size == (64, 96)
        assert image.convert("RGB").tobytes() == IMAGE.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["fox.png"]


def test_the_parameters_are_as_a1111_writes_them() -> None:
    assert to_parameters(RECORD) == (
        "a fox, näive\nsecond: line <lora:wren v1.2:0.8> <lora:neon:0.5:1>\n"
        "Negative prompt: blue, bad\n"
        "Steps: 12, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3.5, Seed: 7, "
        'Size: 64x96, Model hash: dddddddddd, Model: "toybox, small", Clip skip: 2, '
        f'Lora hashes: "wren v1.2: {"b" * 12}, neon: {"c" * 12}", Fusion: nla, '
        f"Version: composer {RECORD.version}"
    )


def test_the_parameters_alone_give_the_same_picture() -> None:
    read = from_parameters(to_parameters(RECORD))
    assert read.request.prompt == "a fox, näive\nsecond: line"
    assert read.request == replace(RECORD.request, prompt=read.request.prompt)
    assert [(x.name, x.unet, x.text_encoder, x.tensor_hash) for x in read.loras] == [
        ("wren v1.2", 0.8, 0.8, "b" * 12),
        ("neon", 1, 0.5, "c" * 12),
    ]
    assert (read.model_name, read.model_hash, read.notes) == ("toybox, small", "d" * 10, ())


@pytest.mark.parametrize("kind", list(RECIPES))
def test_the_parameters_name_the_fusion_and_its_file(kind: str) -> None:
    source, words = RECIPES[kind].source, {"gates": "Gates", "mixlora": "MixLoRA"}
    fusion = {"name": kind} | ({source: "a, b", "hash": "e" * 64} if source else {})
    text = to_parameters(replace(RECORD, fusion=fusion))
    assert from_parameters(text).fusion == fusion
    if source:
        called = words[source]
        assert f'Fusion: {kind}, {called}: "a, b", {called} hash: {"e" * 64}, Version' in text


def test_another_programs_picture_is_read(tmp_path: Path) -> None:
    text = (
        "portrait <lora:old:1>, (detailed:1.2)\nNegative prompt: lowres\nworst quality\n"
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, "
        'Size: 512x768, Model hash: 0123456789, Model: anything, Lora hashes: "old: 0123456789ab", '
        "Version: v1.10.1"
    )
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", text)
    IMAGE.save(tmp_path / "theirs.png", pnginfo=texts)
    read = read_png(tmp_path / "theirs.png")
    assert read.request == Request(
        prompt="portrait, (detailed:1.2)",
        negative_prompt="lowres\nworst quality",
        steps=30,
        sampler="DPM++ 2M Karras",
        cfg_scale=7,
        seed=42,
        width=512,
        height=768,
    )
    assert read.loras == (LoraRecord(name="old", tensor_hash="0123456789ab"),)
    assert (read.model_name, read.version, read.notes) == ("anything", "v1.10.1", ())


@pytest.mark.parametrize(
    ("sampler", "schedule", "taken"),
    [
        ("DPM++ 2M", "SGM Uniform", ("DPM++ 2M", "SGM Uniform")),
        ("DPM++ 2M", "Exponential", ("DPM++ 2M", "Exponential")),
        ("DPM++ 2M SDE", "Beta", ("DPM++ 2M SDE", "Beta")),
        ("Euler a", "Karras", ("Euler a", "Karras")),
        ("DPM++ 2M", "Automatic", ("DPM++ 2M", "Karras")),  # as A1111 draws it then
        ("Euler", "Automatic", ("Euler", "Uniform")),
        ("DDIM", "Automatic", ("DDIM", "Automatic")),
        ("DPM++ 2M Karras", "", ("DPM++ 2M", "Karras")),
        ("Euler A", "", ("Euler a", "Automatic")),
    ],
)
def test_samplers_and_schedules_of_a1111(
    sampler: str, schedule: str, taken: tuple[str, str]
) -> None:
    said = f", Schedule type: {schedule}" if schedule else ""
    read = from_parameters(f"x\nSteps: 8, Sampler: {sampler}{said}, Seed: 5")
    assert ((read.request.sampler, read.request.schedule), read.notes) == (taken, ())


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [("DPM++ 2M", "Align Your Steps"), ("DDIM", "Karras"), ("DPM++ SDE", "Simple")],
)
def test_a_schedule_that_is_not_here_is_noted(sampler: str, schedule: str) -> None:
    read = from_parameters(f"x\nSteps: 8, Sampler: {sampler}, Schedule type: {schedule}, Seed: 5")
    assert (read.request.sampler, read.request.schedule) == (sampler, "Automatic")
    assert any(repr(schedule) in note and "model's own" in note for note in read.notes)


def test_what_cannot_be_taken_over_is_noted() -> None:
    read = from_parameters("x\nSteps: 900, Sampler: Restart, CFG scale: ?, Seed: 4")
    assert read.request == Request(prompt="x", seed=4)
    steps, cfg = (next(n for n in read.notes if word in n) for word in ("900", "cfg_scale"))
    assert "steps 20 is used instead" in steps
    assert "is not a number" in cfg
    assert any("Restart" in note for note in read.notes)


def test_pictures_that_say_nothing_or_are_damaged(tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "mute.png")
    with pytest.raises(ComposerError, match=r"mute.png does not say how it was made"):
        read_png(tmp_path / "mute.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ComposerError, match=r"text.png cannot be read as a PNG"):
        read_png(tmp_path / "text.png")
    with pytest.raises(ComposerError, match=r"missing.png cannot be read"):
        read_png(tmp_path / "missing.png")
    sound = json.loads(RECORD.to_json())
    hostile = (
        {"loras": [{"name": "a", "unet": "x"}]},
        {"loras": [{"name": ["a"]}]},
        {"fusion": 3},
        {"model_hash": 3},
        {"notes": [3]},
    )
    broken = [json.dumps(sound | change) for change in hostile]
    for text in ("{", "[]", '{"format": 1}', '{"format": 1, "request": 3, "loras": []}', *broken):
        with pytest.raises(ComposerError, match=r"cannot be read"):
            PictureRecord.from_json(text)
    with pytest.raises(ComposerError, match=r"format 2.*Update"):
        PictureRecord.from_json('{"format": 2}')
    with pytest.raises(ComposerError, match=r"last line holds no settings"):
        from_parameters("just a prompt")


def test_a_picture_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_png(tmp_path / "huge.png", IMAGE, RECORD)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice that
    with pytest.raises(ComposerError, match=r"huge.png cannot be read"):
        read_png(path)


def test_it_says_nothing_of_the_machine(tmp_path: Path) -> None:
    with Image.open(write_png(tmp_path / "fox.png", IMAGE, RECORD)) as image:
        assert set(image.info) == {"parameters", "composer"}
        assert not any("/" in text for text in image.info.values())


def test_writing_fails_with_a_message_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match=r"cannot be written.*Check that the folder exists"):
        write_png(tmp_path / "nowhere" / "a.png", IMAGE, RECORD)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ComposerError, match=r"folder.png cannot be written"):
        write_png(tmp_path / "folder.png", IMAGE, RECORD)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_enlarge_keeps_the_proportions_and_never_shrinks() -> None:
    assert enlarge(IMAGE, 384).size == (256, 384)
    assert enlarge(IMAGE, 50) is IMAGE
