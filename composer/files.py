"""Write a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from composer.errors import ComposerError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`; if anything fails, the file that stood there before still stands.

    Raises:
        ComposerError: the folder is missing or cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ComposerError(
            f"{path} cannot be written ({error.strerror}). Check that the folder exists, may "
            "be written to and has room."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
