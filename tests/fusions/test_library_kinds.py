"""Libraries of every kind of file: what is found, called, told and read, by one rule for all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_loras import write_lora

from composer.errors import ComposerError
from composer.experts import LORAS, Library
from composer.experts.library import Kind
from composer.fusions.libraries import GATES, MIXLORAS, WEIGHTS, Libraries

KINDS = (LORAS, GATES, MIXLORAS, WEIGHTS)
MANY = 2000


def read(path: Path) -> Any:
    """Stands in for a reader: a file called bad cannot be used."""
    if "bad" in path.name:
        raise ComposerError(f"{path}: is bad. Make it again.")
    return path.name


def hashed(path: Path) -> str:
    pytest.fail(f"{path} was hashed")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.place or "loras")
def kind(request: pytest.FixtureRequest) -> Kind[Any]:
    """A kind of file whose files hold anything."""
    return replace(request.param, read=read, hash=hashed, beside=lambda info, _: info)


def put(kind: Kind[Any], folder: Path, *names: str) -> Iterator[Path]:
    for name in names:
        path = folder / kind.place / f"{name}{kind.suffixes[0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        yield path


def told(library: Library[Any]) -> dict[str, str]:
    return {entry.name: entry.error or "" for entry in library.scan()}


def test_files_of_one_name_are_told_apart_by_their_folders(kind: Kind[Any], tmp_path: Path) -> None:
    one, two, again = tmp_path / "one", tmp_path / "two", tmp_path / "more" / "two"
    (first,) = put(kind, one, "Pair")
    (second,) = put(kind, two, "pair")
    library = Library([one, two], kind)
    assert {e.name: e.path for e in library.cards()} == {"one/Pair": first, "two/pair": second}
    assert library.find(" TWO/pair ").path == second
    with pytest.raises(ComposerError, match=r"'pair': several .* Say 'one/Pair', 'two/pair'\."):
        library.find("pair")
    (third,) = put(kind, again, "pair")
    apart = Library([one, two, again, one], kind)
    assert {entry.path for entry in apart.cards()} == {first, second, third}
    assert len({entry.name.casefold() for entry in apart.cards()}) == 3
    for entry in apart.cards():
        assert apart.find(entry.name).path == entry.path


def test_a_name_that_no_file_has_is_told_with_the_remedy(kind: Kind[Any], tmp_path: Path) -> None:
    tuple(put(kind, tmp_path, "pair", "bad one"))
    library = Library([tmp_path], kind)
    for name, remedy in (("pear", "Did you mean 'pair'?"), ("zz", str(tmp_path / kind.place))):
        with pytest.raises(ComposerError) as error:
            library.find(name)
        what, unknown, advice = kind.unknown.partition(": ")
        wanted = f"{what.format(name=repr(name))}{unknown}{advice} "
        assert str(error.value).startswith(wanted) and remedy in str(error.value)
    with pytest.raises(ComposerError, match=r"bad one.*is bad\. Make it again"):
        library.find("bad one")
    tuple(put(kind, tmp_path, "pear"))
    with pytest.raises(ComposerError, match="pair"):
        library.find("pear", rescan=False)
    assert library.find("pear").facts


def test_what_cannot_be_used_is_named_and_the_rest_is_found(
    kind: Kind[Any], tmp_path: Path
) -> None:
    folder, outside = tmp_path / "loras", tmp_path / "outside"
    (good, bad) = put(kind, folder, "good", "bad")
    (secret,) = put(kind, outside, "secret")
    circle, gone, out, alias = put(kind, folder, "circle", "gone", "out", "alias")
    for link, target in ((circle, circle), (gone, outside / "no"), (out, secret), (alias, good)):
        link.unlink()
        link.symlink_to(target)
    (bad.parent / ".hidden").with_suffix(bad.suffix).touch()
    (bad.parent / "notes.txt").touch()
    library = Library([folder], kind)
    errors = told(library)
    assert {name for name, error in errors.items() if not error} == {"good", "alias"}
    words = {"bad": "is bad", "circle": "cannot be read", "gone": "leads out", "out": "leads out"}
    assert errors.keys() == {"good", "alias", *words}
    for name, word in words.items():
        assert word in errors[name] and str(bad.with_stem(name)) in errors[name]
    assert not told(Library([folder, outside], kind))["out"]
    assert told(library) == errors


def test_files_that_go_while_they_are_looked_at_are_passed_over(
    kind: Kind[Any], tmp_path: Path
) -> None:
    first, second, third = put(kind, tmp_path, "a", "b", "c")

    def takes(path: Path) -> str:
        if path == first:
            second.unlink()
        if path == third:
            third.unlink()
            raise ComposerError(f"{path}: there is no such file.")
        return path.name

    library = Library([tmp_path], replace(kind, read=takes))
    assert told(library) == {"a": "", "c": f"{third}: there is no such file."}
    assert told(library) == {"a": ""}
    first.unlink()
    library.kind = replace(kind, hash=LORAS.hash)
    assert library.hash(library.cards()[0]) == ""


def test_a_folder_that_goes_or_cannot_be_read_is_not_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = replace(LORAS, read=read, beside=lambda info, _: info)
    tuple(put(kind, tmp_path, "a", "gone/b", "shut/c", "open/d"))
    sound = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "gone":
            raise FileNotFoundError(2, "No such file or directory", path)
        if Path(path).name in ("shut", "gates"):
            raise PermissionError(13, "Permission denied", path)
        return sound(path)

    monkeypatch.setattr(os, "scandir", scandir)
    errors = told(Library([tmp_path], kind))
    assert errors.keys() == {"a", "d", "shut"}
    assert f"{tmp_path / 'shut'}: cannot be read (Permission denied)" in errors["shut"]
    (shut,) = told(Library([tmp_path], replace(GATES, read=read))).values()
    assert "Permission denied" in shut
    with pytest.raises(ComposerError, match="Permission denied"):
        Library([tmp_path / "shut"], kind).scan()


def test_thousands_of_files_are_read_once_and_by_their_headers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_lora(tmp_path / "0.safetensors", seed=1)
    with first.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    assert first.stat().st_size > 2 * header
    for number in range(1, MANY):
        os.link(first, tmp_path / f"{number}.safetensors")
    opened: list[Counted] = []

    class Counted(io.FileIO):
        many = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(-1 if size is None else size)
            self.many += len(data)
            return data

    def counted(path: Path, *_: Any) -> Counted:
        opened.append(Counted(path))
        return opened[-1]

    monkeypatch.setattr(Path, "open", counted)
    library = Library([tmp_path], replace(LORAS, hash=hashed))
    assert len(library.scan()) == MANY and not any(entry.error for entry in library.cards())
    assert len(opened) == MANY and {file.many for file in opened} == {max(header, 64)}
    before = library.cards()
    assert library.scan() == before and len(opened) == MANY


def test_what_was_being_written_is_deleted_in_every_folder(tmp_path: Path) -> None:
    left = [tmp_path / kind.place / ".pair.safetensors.0123abcd" for kind in KINDS]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    Libraries([tmp_path, tmp_path / "nowhere"]).clean()
    assert not any(path.exists() for path in left)
