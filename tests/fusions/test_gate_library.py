"""The folders of gate files: what is found, what is a problem, and who reads what."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gates import write_gates
from tiny_loras import write_lora

from composer.errors import ComposerError
from composer.experts import LORAS, Library
from composer.fusions.libraries import GATES


@pytest.fixture(scope="module")
def made(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gate file to copy."""
    folder = tmp_path_factory.mktemp("made")
    loras = {n: write_lora(folder / f"{n}.safetensors", seed=i) for i, n in enumerate(("a", "b"))}
    return write_gates(folder / "pair.safetensors", tiny_sd, loras)


def put(made: Path, *places: Path) -> None:
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(made.read_bytes())


def test_headers_alone_are_read_and_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gates" / "pair.safetensors"
    put(made, path)
    library = Library([tmp_path], GATES)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", lambda _: pytest.fail("the file was read"))
        (card,) = library.scan()
        library.kind = replace(GATES, read=lambda _: pytest.fail("read again"))
        assert library.scan() == (card,)
    library.kind = GATES
    assert (card.name, card.error) == ("pair", None)
    assert [expert.name for expert in card.info.experts] == ["a", "b"]
    digits = library.hash(card)
    assert library.with_hash(digits[:12]) == (card,) and library.with_hash("") == ()
    os.utime(path, ns=(1, 1))
    assert library.scan()[0].facts is not None


def test_broken_and_foreign_files_are_problems_and_the_rest_is_found(
    made: Path, tmp_path: Path
) -> None:
    gates = tmp_path / "gates"
    put(made, gates / "pair.safetensors", gates / ".hidden.safetensors", gates / "notes.txt")
    (gates / "empty.safetensors").touch()
    (gates / "cut.safetensors").write_bytes(made.read_bytes()[:-5])
    (gates / "pickle.safetensors").write_bytes(b"\x80\x04\x95" + bytes(64))
    (gates / "folder.safetensors").mkdir()
    (gates / "nowhere.safetensors").symlink_to(tmp_path / "gone")
    outside = tmp_path.parent / "outside.safetensors"
    put(made, outside)
    (gates / "link.safetensors").symlink_to(outside)
    write_lora(gates / "lora.safetensors", seed=1)
    cards = {card.name: card.error or "" for card in Library([tmp_path], GATES).cards()}
    assert cards.pop("pair") == ""
    told = {
        "empty": "is empty", "cut": "damaged", "pickle": "pickle", "folder": "is not a file",
        "nowhere": "nowhere", "link": "leads out", "lora": "holds no gates",
    }  # fmt: skip
    assert cards.keys() == told.keys()
    for name, words in told.items():
        assert words in cards[name], cards[name]


def test_loras_and_gates_do_not_mix(made: Path, tmp_path: Path) -> None:
    write_lora(tmp_path / "zibo.safetensors", seed=1)
    write_lora(tmp_path / "more" / "gates" / "deep.safetensors", seed=2)
    put(made, tmp_path / "gates" / "pair.safetensors", tmp_path / "astray.safetensors")
    cards = {card.name: card.error for card in Library([tmp_path], LORAS).cards()}
    assert cards.keys() == {"zibo", "deep", "astray"}
    assert "into the folder gates/" in (cards["astray"] or "")


def test_names(made: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    put(made, one / "gates" / "pair.safetensors", two / "gates" / "pair.safetensors")
    put(made, two / "gates" / "Other.safetensors", tmp_path / "lent.safetensors")
    library = Library([one, two, one, tmp_path / "missing"], GATES)
    assert [card.name for card in library.cards()] == ["one/pair", "Other", "two/pair"]
    assert library.find("other.safetensors").name == "Other"
    assert library.lend(tmp_path / "lent.safetensors").name == "lent"
    assert library.find("lent").name == "lent"
    assert library.lend(two / "gates" / "Other.safetensors").name == "Other"
    with pytest.raises(ComposerError, match="'one/pair'"):
        library.find("one/pai")
    with pytest.raises(ComposerError, match="Train them, or put"):
        library.find("zzz")
    with pytest.raises(ComposerError, match="cannot be read"):
        library.lend(tmp_path / "none.safetensors")
