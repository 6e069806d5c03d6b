"""Whether there will be a place for what a training makes."""

from __future__ import annotations

import os
from pathlib import Path

from composer.errors import ComposerError


def check_writable(output: Path) -> None:
    """Make the folder of `output`; raises ComposerError where nothing could be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComposerError(
            f"The folder {output.parent} cannot be made ({error.strerror}): give another output."
        ) from error
    if not os.access(output.parent, os.W_OK):
        raise ComposerError(
            f"The folder {output.parent} may not be written to: give another output."
        )
