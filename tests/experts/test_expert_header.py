"""The header is checked before any tensor is read, and what is no LoRA is called by its name."""

from __future__ import annotations

import io
import os
import pickle
import time
import zipfile
from pathlib import Path

import pytest
import torch
from lora_files import kohya_pair, raw_file, save

from composer.errors import ComposerError
from composer.experts import read_header
from composer.experts.header import MAX_HEADER_BYTES, MAX_TENSORS


class Touch:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.mkdir, (str(self.path),))


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return buffer.getvalue()


def test_a_sound_header(tmp_path: Path) -> None:
    path = save(tmp_path / "lora.safetensors", kohya_pair(), ss_output_name="hat")
    header = read_header(path)
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in kohya_pair().items()
    }
    assert header.metadata == {"ss_output_name": "hat"}
    last = max(entry.end for entry in header.tensors.values())
    assert header.data_start + last == path.stat().st_size


@pytest.mark.parametrize("name", ["lora.safetensors", "lora.pt", "lora.bin"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_refused_unopened(tmp_path: Path, name: str, protocol: int) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"weights": Touch(tmp_path / "trap")}, protocol))
    with pytest.raises(ComposerError, match=r"pickle.*\.safetensors version"):
        read_header(path)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saves_is_refused(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "lora.safetensors"
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ComposerError, match="pickle"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x10", "is not a safetensors file"),
        (bytes(500), "is not a safetensors file"),
        (zipped(), "zip archive"),
        (b"<!DOCTYPE html><html><title>Log in</title></html>", "web page"),
        (b"\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b'{"error": "Invalid token, please log in"}', "JSON text"),
        (b"GGUF\x03\x00\x00\x00\x00", "GGUF"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00", "picture"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)
    with pytest.raises(ComposerError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value)


def test_another_ending_is_refused_whatever_is_inside(tmp_path: Path) -> None:
    path = save(tmp_path / "lora.ckpt", kohya_pair())
    with pytest.raises(ComposerError, match=r"\.safetensors files only"):
        read_header(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match="no such file"):
        read_header(tmp_path / "lora.safetensors")
    with pytest.raises(ComposerError, match="is not a file"):
        read_header(tmp_path)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "not valid JSON"),
        (b"{\xff\xfe}", "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1e}', "not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "no description|not valid JSON"),
        (b'{"a": {}, "a": {}}', "appears twice"),
        ({"a": 3}, "no description"),
        ({"a": {}}, "number format"),
        ({"a": entry("F12")}, "number format 'F12'"),
        ({"a": entry(["F32"])}, "number format"),
        ({"a": entry(shape=2)}, "shape"),
        ({"a": entry(shape=[-2])}, "shape"),
        ({"a": entry(shape=[2.0])}, "shape"),
        ({"a": entry(shape=[True, 2])}, "shape"),
        ({"a": entry(shape=[1] * 9)}, "shape"),
        ({"a": entry(shape=[2**40, 2**40])}, "shape"),
        ({"a": entry(shape=[0, 2**40], offsets=[0, 0])}, "shape"),
        ({"a": entry(shape=[3])}, "does not match its 8 bytes"),
        ({"a": entry(offsets=[8, 0])}, "offsets"),
        ({"a": entry(offsets=[0])}, "offsets"),
        ({"a": entry(offsets=[-8, 0])}, "offsets"),
        ({"a": entry(offsets=None)}, "offsets"),
        ({"a": entry(offsets=[4, 12])}, "gap"),
        ({"a": entry(), "b": entry()}, "overlaps"),
        ({"a": entry(), "b": entry(offsets=[8, 16])}, "16 bytes of tensors and holds 8"),
        ({}, "0 bytes of tensors and holds 8"),
        ({"__metadata__": 3, "a": entry()}, "metadata"),
        ({"__metadata__": {"a": 3}, "a": entry()}, "metadata"),
        ({"__metadata__": {"modelspec.title": "hat \ud800"}, "a": entry()}, "lone surrogate"),
        ({"__metadata__": {"hat \udfff": ""}, "a": entry()}, "lone surrogate"),
        ({"a\ud800": entry()}, "lone surrogate"),
    ],
)
def test_hostile_headers(tmp_path: Path, header: object, message: str) -> None:
    path = raw_file(tmp_path / "lora.safetensors", header, bytes(8))
    with pytest.raises(ComposerError, match=message):
        read_header(path)


def test_letters_of_two_halves_are_text(tmp_path: Path) -> None:
    header = b'{"__metadata__": {"title": "\\ud83d\\ude00"}}'
    assert read_header(raw_file(tmp_path / "a.safetensors", header)).metadata == {"title": "😀"}


def test_a_list_is_no_header(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "lora.safetensors", b"[]", bytes(8))
    with pytest.raises(ComposerError, match="not a safetensors file"):
        read_header(path)


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**63])
def test_header_length_is_capped(tmp_path: Path, length: int) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ComposerError, match="ends inside its header"):
        read_header(path)
    os.truncate(path, 2 * MAX_HEADER_BYTES)
    with pytest.raises(ComposerError, match=r"claims|ends inside"):
        read_header(path)


def test_a_bomb_of_tensors_costs_nothing(tmp_path: Path) -> None:
    empty = entry(shape=[0], offsets=[0, 0])
    path = raw_file(tmp_path / "many.safetensors", {str(i): empty for i in range(MAX_TENSORS + 1)})
    with pytest.raises(ComposerError, match=f"{MAX_TENSORS} is the most"):
        read_header(path)
    text = b"{" + b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' * 500_000 + b"}"
    path = raw_file(tmp_path / "bomb.safetensors", text)
    started = time.monotonic()
    with pytest.raises(ComposerError, match=f"{MAX_HEADER_BYTES} is the most"):
        read_header(path)
    assert time.monotonic() - started < 1


def test_a_cut_off_file(tmp_path: Path) -> None:
    path = save(tmp_path / "lora.safetensors", kohya_pair())
    content = path.read_bytes()
    for size in range(1, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(ComposerError):
            read_header(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ComposerError, match=r"cut off.*Download"):
        read_header(path)
