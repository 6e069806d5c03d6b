"""A picture's LoRAs are found again though their files were renamed, changed or taken away."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_loras import write_lora

from composer.diffusion.record import LoraRecord, PictureRecord
from composer.diffusion.request import Request
from composer.experts import LORAS, Library
from composer.experts.hashes import file_hash_of, tensor_hash, tensor_hash_of
from composer.fusions import Normalised, Sum
from composer.fusions.libraries import Libraries
from composer.studio import History, Recalled, Studio
from composer.studio.recall import recall


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "loras"
    write_lora(path / "zibo.safetensors", seed=1)
    write_lora(path / "neon.safetensors", seed=2)
    return path


@pytest.fixture
def record(folder: Path) -> PictureRecord:
    hashes = {name: tensor_hash_of(folder / f"{name}.safetensors") for name in ("zibo", "neon")}
    return PictureRecord(
        request=Request(prompt="a fox", seed=3),
        loras=(
            LoraRecord(name="zibo", unet=0.8, text_encoder=0.2, tensor_hash=hashes["zibo"]),
            LoraRecord(name="neon", unet=0.5, text_encoder=0.5, tensor_hash=hashes["neon"]),
        ),
        fusion={"name": "nla"},
    )


def look_up(record: PictureRecord, folder: Path) -> Recalled:
    return recall(record, Libraries([folder]))


def recalled(record: PictureRecord, folder: Path) -> tuple[dict[str, float], str]:
    """The weights by the names of now, and the notes."""
    found = look_up(record, folder)
    return {row.name: row.weight for row in found.asked.rows}, " ".join(found.notes)


def test_the_hash_in_pieces_is_the_hash(folder: Path) -> None:
    path = folder / "zibo.safetensors"
    assert tensor_hash_of(path) == tensor_hash(path.read_bytes())


def test_nothing_changed(folder: Path, record: PictureRecord) -> None:
    found = look_up(record, folder)
    assert found.notes == ()
    assert (found.asked.request, found.asked.recipe) == (record.request, Normalised())
    weights = [(row.name, row.weight, row.text_encoder) for row in found.asked.rows]
    assert weights == [("zibo", 0.8, 0.2), ("neon", 0.5, None)]


@pytest.mark.parametrize("digits", [64, 12])  # ours, and A1111's
def test_a_renamed_lora_is_found_by_its_hash(
    folder: Path, record: PictureRecord, digits: int
) -> None:
    (folder / "zibo.safetensors").rename(folder / "fox v2.safetensors")
    short = [replace(lora, tensor_hash=lora.tensor_hash[:digits]) for lora in record.loras]
    rows, notes = recalled(replace(record, loras=tuple(short)), folder)
    assert rows == {"fox v2": 0.8, "neon": 0.5}
    assert notes == "The LoRA 'zibo' is called 'fox v2' now."


@pytest.mark.parametrize("digits", [10, 64])
def test_the_files_own_hash_is_accepted_too(
    folder: Path, record: PictureRecord, digits: int
) -> None:
    """AutoV2, which Civitai and Fooocus write where A1111 writes the tensors' hash."""
    lora = replace(record.loras[0], tensor_hash=file_hash_of(folder / "zibo.safetensors")[:digits])
    one = replace(record, loras=(lora,))
    assert recalled(one, folder) == ({"zibo": 0.8}, "")
    (folder / "zibo.safetensors").rename(folder / "fox v2.safetensors")
    assert recalled(one, folder) == ({"fox v2": 0.8}, "The LoRA 'zibo' is called 'fox v2' now.")


def test_a_folder_of_another_program_is_not_asked_for(folder: Path, record: PictureRecord) -> None:
    lora = LoraRecord(name="styles/neon", unet=0.5, text_encoder=0.5)
    assert recalled(replace(record, loras=(lora,)), folder) == ({"neon": 0.5}, "")
    twice = (lora, LoraRecord(name="neon", unet=0.25, text_encoder=1))
    (row,) = look_up(replace(record, loras=twice), folder).asked.rows
    assert row.weights == {"unet": 0.75, "text_encoder": 1.5}


def test_tags_in_a_negative_prompt_are_said_and_left_out(
    folder: Path, record: PictureRecord
) -> None:
    asked = replace(record.request, negative_prompt="blurry <lora:neon:1>")
    found = look_up(replace(record, request=asked), folder)
    assert found.asked.request.negative_prompt == "blurry"
    assert "<lora:neon:1> in the negative prompt is left out" in " ".join(found.notes)


def test_edited_metadata_is_no_change(folder: Path, record: PictureRecord) -> None:
    write_lora(folder / "zibo.safetensors", seed=1, **{"modelspec.title": "Zibo the fox"})
    assert recalled(record, folder) == ({"zibo": 0.8, "neon": 0.5}, "")


def test_a_changed_file_of_the_same_name_is_said(folder: Path, record: PictureRecord) -> None:
    write_lora(folder / "zibo.safetensors", seed=9)
    rows, notes = recalled(record, folder)
    assert rows == {"zibo": 0.8, "neon": 0.5}
    assert "'zibo' has changed since" in notes
    assert f"hash begins {record.loras[0].tensor_hash[:12]}: put that into" in notes


def test_the_same_tensors_go_before_the_same_name(folder: Path, record: PictureRecord) -> None:
    (folder / "zibo.safetensors").rename(folder / "old.safetensors")
    write_lora(folder / "zibo.safetensors", seed=9)
    assert recalled(record, folder)[0] == {"old": 0.8, "neon": 0.5}


def test_two_that_changed_their_names(folder: Path, record: PictureRecord) -> None:
    for old, new in (("zibo", "other"), ("neon", "zibo"), ("other", "neon")):
        (folder / f"{old}.safetensors").rename(folder / f"{new}.safetensors")
    assert recalled(record, folder)[0] == {"neon": 0.8, "zibo": 0.5}


def test_one_file_stands_for_one_lora(folder: Path, record: PictureRecord) -> None:
    twin = replace(record.loras[0], name="twin")
    rows, notes = recalled(replace(record, loras=(twin, *record.loras)), folder)
    assert set(rows) == {"twin", "zibo", "neon"}
    assert "'twin': there is no such LoRA" in notes


def test_a_missing_lora_is_named_with_its_hash(folder: Path, record: PictureRecord) -> None:
    (folder / "zibo.safetensors").unlink()
    rows, notes = recalled(record, folder)
    assert rows == {"zibo": 0.8, "neon": 0.5}
    assert "'zibo': there is no such LoRA" in notes
    assert record.loras[0].tensor_hash[:12] in notes


@pytest.mark.parametrize("digits", ["", "a"])
def test_too_short_a_hash_finds_nothing(folder: Path, record: PictureRecord, digits: str) -> None:
    lora = LoraRecord(name="gone", tensor_hash=digits)
    assert set(recalled(replace(record, loras=(lora,)), folder)[0]) == {"gone"}


def test_an_unknown_fusion_becomes_the_weighted_sum(folder: Path, record: PictureRecord) -> None:
    other = replace(record, fusion={"name": "magic"})
    found = look_up(other, folder)
    assert found.asked.recipe == Sum()
    assert "'magic' is not known here" in found.notes[0]


def test_a_hash_is_read_once_while_the_file_stays(folder: Path) -> None:
    library = Library([folder], LORAS)
    (neon, zibo) = library.scan()
    first = library.hash(zibo)
    read: list[Path] = []
    library.kind = replace(LORAS, hash=lambda path: (read.append(path), "new")[1])
    assert library.hash(zibo) == first and read == []
    os.utime(zibo.path, ns=(1, 1))
    assert library.hash(zibo) == "new"
    neon.path.unlink()
    assert library.hash(neon) == ""


class TestStudio:
    def recalled(self, studio: Studio, folder: Path, **made_by: str) -> Recalled:
        from PIL import Image

        record = PictureRecord(
            request=Request(seed=1, width=16, height=16),
            loras=(LoraRecord(name="zibo"),),
            **made_by,  # pyright: ignore[reportArgumentType]
        )
        return studio.recall(History(folder).save(Image.new("RGB", (16, 16)), record))

    def test_another_model_is_said(self, studio: Studio, tmp_path: Path) -> None:
        assert self.recalled(studio, tmp_path).notes == ()
        engine = studio._engine  # pyright: ignore[reportPrivateUsage]
        assert engine is not None
        ours = engine.model.hash
        assert self.recalled(studio, tmp_path, model_hash=ours[:10]).notes == ()
        (note,) = self.recalled(studio, tmp_path, model_name="sd15", model_hash="0" * 64).notes
        assert "'sd15' (hash 000000000000)" in note and engine.model.name in note

    def test_without_a_folder_the_rest_comes_back(self, tiny_sd: Path, tmp_path: Path) -> None:
        studio = Studio(tiny_sd, [tmp_path / "nowhere"], tmp_path)
        found = self.recalled(studio, tmp_path)
        assert found.asked.request.seed == 1
        assert "nowhere" in found.notes[0]
