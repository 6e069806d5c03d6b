"""Write a file whole or not at all, and never two writers the same file."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from composer.errors import ComposerError

if sys.platform != "win32":
    import fcntl

LOADING = threading.RLock()
"""Held while a library loads a model. They change flags and functions of PyTorch for all threads
meanwhile, and two that load at once put back each other's: every model after is damaged."""

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`; if anything fails, the file that stood there before still stands.

    Raises:
        ComposerError: the folder is missing or cannot be written to, or the disk is full.
    """
    beside = temporary(path, secrets.token_hex(4))
    clean(path.parent, path.name)
    try:
        with held(beside) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":  # which renames no open file
                file.close()
            beside.replace(path)
    except OSError as error:
        raise ComposerError(
            f"{path} cannot be written ({error.strerror}). Check that the folder exists, may "
            "be written to and has room."
        ) from error


def check_writable(path: Path) -> None:
    """Make the folder of a file that is to be written later.

    Raises:
        ComposerError: nothing could be written there.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComposerError(
            f"The folder {folder} cannot be made ({error.strerror}): give another output."
        ) from error
    if not os.access(folder, os.W_OK):
        raise ComposerError(f"The folder {folder} may not be written to: give another output.")


def temporary(path: Path, token: str) -> Path:
    """A name beside `path` that `clean` knows; token: eight hexadecimal digits."""
    return path.with_name(f".{path.name}.{token}")


@contextlib.contextmanager
def held(path: Path) -> Generator[BinaryIO]:
    """A new file that no other process has; it is gone at the end, unless it was renamed.

    Raises:
        FileExistsError: another one holds it, or was killed while it did.
        OSError: it cannot be created.
    """
    while True:
        with path.open("xb") as file:
            _lock(file, wait=True)
            if not os.fstat(file.fileno()).st_nlink:
                continue  # `clean` took it between the two lines above
            try:
                yield file
            finally:
                if sys.platform == "win32":  # which deletes no open file
                    file.close()
                path.unlink(missing_ok=True)
            return


def clean(folder: Path, name: str = "") -> None:
    """Delete what writers that were killed have left in a folder; what is being written stays.

    name: of the one file that they were to write.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = _TEMPORARY.fullmatch(path.name)
            if not found or name not in ("", found[1]):
                continue
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError), path.open("rb") as file:
                    _lock(file, wait=False)
                    if sys.platform == "win32":
                        file.close()
                    if sys.platform == "win32" or os.fstat(file.fileno()).st_nlink:
                        path.unlink()


def _lock(file: BinaryIO, *, wait: bool) -> None:
    """Held until the file is closed, also by the end of the process. Windows needs none: there an
    open file cannot be deleted."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            if not wait:
                raise  # it is being written, or this file system knows no locks
