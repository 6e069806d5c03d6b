"""The library finds files by name, in their folders only, and no file breaks it."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_files import KOHYA, kohya_pair, save

from composer.errors import ComposerError
from composer.experts import LORAS, Library, LoraInfo
from composer.experts.hashes import tensor_hash_of
from composer.fusions.libraries import GATES


def lora(path: Path, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(path.with_name(path.name + ".safetensors"), kohya_pair(), **metadata)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "loras"
    lora(path / "Hat", **{"composer.trigger": "a red hat"})
    lora(path / "style" / "pixel.v2")
    return path


def names(library: Library[LoraInfo]) -> list[str]:
    return [card.name for card in library.scan()]


def test_cards(folder: Path) -> None:
    hat, pixel = Library([folder], LORAS).cards()
    assert (hat.name, hat.info.trigger, hat.info.rank, hat.error) == ("Hat", "a red hat", 2, None)
    assert hat.size == hat.path.stat().st_size
    assert (pixel.name, pixel.path) == ("pixel.v2", folder / "style" / "pixel.v2.safetensors")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Hat", "Hat"),
        ("hat", "Hat"),
        (" HAT.safetensors", "Hat"),
        ("pixel.v2", "pixel.v2"),
        ("style/pixel.v2", "pixel.v2"),
        ("loras/Style/Pixel.v2", "pixel.v2"),
    ],
)
def test_find(folder: Path, spelling: str, name: str) -> None:
    assert Library([folder], LORAS).find(spelling).name == name


def test_find_a_name_with_accents_however_they_are_stored(folder: Path) -> None:
    lora(folder / "cafe\u0301")
    assert Library([folder], LORAS).find("CAF\u00c9").error is None


@pytest.mark.parametrize("spelling", ["cap ", "cap", "CAP .safetensors", " cap  "])
def test_find_a_file_whose_name_ends_in_a_space(folder: Path, spelling: str) -> None:
    lora(folder / "cap ")
    assert Library([folder], LORAS).find(spelling).path.name == "cap .safetensors"


def test_who_does_not_wait_reads_no_file_and_finds_it_later(folder: Path) -> None:
    readers: list[threading.Thread] = []
    begun, go_on = threading.Event(), threading.Event()

    def read(path: Path) -> str:
        readers.append(threading.current_thread())
        begun.set()
        assert go_on.wait(10)
        return tensor_hash_of(path)

    library = Library([folder], replace(LORAS, hash=read))
    _, pixel = library.scan()
    wanted = tensor_hash_of(pixel.path)
    assert library.with_hash(wanted, wait=False) == library.with_hash(wanted, wait=False) == ()
    assert begun.wait(10)
    go_on.set()
    (reader,) = set(readers)
    assert reader is not threading.current_thread()
    reader.join(10)
    assert pixel in library.with_hash(wanted, wait=False)
    assert library.with_hash(wanted) == library.with_hash(wanted, wait=False)
    assert len(readers) == 2  # each file once


def test_unknown_names_get_suggestions(folder: Path) -> None:
    library = Library([folder], LORAS)
    with pytest.raises(ComposerError, match=r"no such LoRA\. Did you mean 'pixel\.v2'\?"):
        library.find("pixel_v2")
    lora(folder / "pixel_v2")
    with pytest.raises(ComposerError, match="no such LoRA"):
        library.find("pixel_v2", rescan=False)
    assert library.find("pixel_v2").error is None
    with pytest.raises(ComposerError, match=r"'zebra'.*Put its \.safetensors file into"):
        library.find("zebra")


def test_a_name_that_is_no_text_is_passed_over(folder: Path) -> None:
    """No page can show it, and a page that tries shows nothing at all."""
    before = names(Library([folder], LORAS))
    for place in (folder, folder / "gates"):
        place.mkdir(exist_ok=True)
        try:
            Path(os.fsdecode(bytes(place) + b"/b\xff.safetensors")).write_bytes(b"")
        except OSError:
            pytest.skip("This file system has no such names.")
    assert names(Library([folder], LORAS)) == before
    assert Library([folder], GATES).cards() == ()


def test_find_sees_files_that_came_later(folder: Path) -> None:
    library = Library([folder], LORAS)
    library.scan()
    lora(folder / "late")
    assert library.find("late").name == "late"


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "..\\secret", "secret\0", "style/../../secret", ".", "", "~", "/"],
)
def test_hostile_names_find_nothing(folder: Path, name: str) -> None:
    lora(folder.parent / "secret")
    with pytest.raises(ComposerError, match="no such LoRA"):
        Library([folder], LORAS).find(name)


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    for place in ("one/a", "one/b", "two/b"):
        lora(tmp_path / place / "hat")
    lora(tmp_path / "three" / "loras" / "cap")
    lora(tmp_path / "four" / "loras" / "CAP")
    folders = [tmp_path / name for name in ("one", "two", "three/loras", "four/loras")]
    library = Library(folders, LORAS)
    assert names(library) == ["a/hat", "loras/cap", "loras/CAP (2)", "one/b/hat", "two/b/hat"]
    assert library.find("one/b/hat").path.is_relative_to(tmp_path / "one")
    with pytest.raises(ComposerError, match="'a/hat', 'one/b/hat', 'two/b/hat'"):
        library.find("hat")


def test_a_file_counts_once_though_folders_overlap(folder: Path) -> None:
    assert names(Library([folder, folder / "style", folder], LORAS)) == ["Hat", "pixel.v2"]


def test_peft_files_go_by_their_folder(folder: Path) -> None:
    lora(folder / "wolf" / "adapter_model")
    lora(folder / "adapter_model")
    library = Library([folder], LORAS)
    assert names(library) == ["adapter_model", "Hat", "pixel.v2", "wolf"]
    assert library.find("wolf").path.name == "adapter_model.safetensors"


def test_bad_files_become_cards_with_their_error(folder: Path) -> None:
    (folder / "empty.safetensors").touch()
    (folder / "old.pt").write_bytes(b"\x80\x02}q\x00.")
    save(folder / "sparse.safetensors", {f"{KOHYA}.bias_size": torch.ones(2)})
    (folder / "notes.txt").write_text("not a LoRA")
    lora(folder / ".hidden" / "cap")
    library = Library([folder], LORAS)
    errors = {card.name: card.error for card in library.scan() if card.error}
    assert {name: error.split(": ", 1)[1][:20] for name, error in errors.items()} == {
        "empty": "is empty (0 bytes). ",
        "sparse": "holds a LoRA with a ",
        "old": "is a Python pickle. ",
    }
    assert library.find("Hat").error is None
    with pytest.raises(ComposerError, match="is empty"):
        library.find("empty")


def test_links_out_of_the_folders_are_refused(folder: Path) -> None:
    outside = lora(folder.parent / "elsewhere" / "secret")
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "shared").symlink_to(outside.parent)
    (folder / "broken.safetensors").symlink_to(folder / "nothing")
    (folder / "circle.safetensors").symlink_to(folder / "circle.safetensors")
    (folder / "alias.safetensors").symlink_to(folder / "Hat.safetensors")
    cards = {card.name: card.error for card in Library([folder], LORAS).scan()}
    assert set(cards) == {"Hat", "alias", "broken", "circle", "link", "pixel.v2", "shared"}
    assert "leads out of the LoRA folders" in (cards["link"] or "")
    assert "leads out of the LoRA folders" in (cards["shared"] or "")
    assert cards["broken"]
    assert cards["circle"]
    assert cards["alias"] is None
    both = Library([folder, outside.parent], LORAS)
    assert {card.name for card in both.scan() if card.error} == {"broken", "circle"}


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match=r"nowhere: this LoRA folder cannot be read"):
        Library([tmp_path / "nowhere"], LORAS).scan()


def test_unchanged_files_are_not_read_again(folder: Path) -> None:
    read: list[Path] = []
    noted = replace(LORAS, read=lambda path: (read.append(path), LORAS.read(path))[1])
    library = Library([folder], noted)
    before = library.scan()
    read.clear()
    assert library.scan() == before
    assert read == []
    hat = lora(folder / "Hat", **{"composer.trigger": "a blue hat"})
    os.utime(hat, ns=(1, 1))
    assert library.find("hat").info.trigger == "a red hat"
    library.scan()
    assert library.find("hat").info.trigger == "a blue hat"
    assert read == [hat]


def test_notes_written_later_show_at_once(folder: Path) -> None:
    library = Library([folder], LORAS)
    library.scan()
    (folder / "Hat.json").write_text(json.dumps({"notes": "best at 0.7"}))
    (folder / "Hat.png").touch()
    library.scan()
    info = library.find("hat").info
    assert (info.notes, info.preview) == ("best at 0.7", folder / "Hat.png")
