"""Files are there whole or not at all, and nobody's writing is in another's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from composer.errors import ComposerError
from composer.files import clean, held, temporary, write_atomically

KILLED = """
import os, signal, sys
from pathlib import Path
from composer.files import write_atomically
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), b"new")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed otherwise there")
def test_what_a_killed_writer_leaves_is_cleaned_and_the_old_file_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_atomically(path, b"old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    clean(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    write_atomically(path, b"once more")
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_being_written_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("notes.deadbeef", ".env", ".a.png.part", "b.1a2b3c4d.c")]
    for other in others:
        other.touch()
    (tmp_path / ".folder.deadbeef").mkdir()
    with held(temporary(tmp_path / "a.png", "0123abcd")) as file:
        clean(tmp_path)
        assert Path(file.name).is_file()
    clean(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / ".folder.deadbeef"])
    clean(tmp_path / "nowhere")


def test_what_one_holds_no_other_gets(tmp_path: Path) -> None:
    path = tmp_path / ".1.00000000"
    with held(path), pytest.raises(FileExistsError), held(path):
        pass
    with held(path):
        assert path.is_file()
    assert not path.exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "missing" / "a", tmp_path / ("n" * 300)):
        with pytest.raises(ComposerError, match="cannot be written"):
            write_atomically(path, b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
