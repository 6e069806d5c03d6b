"""What can be said of a language model and its adapter before any library is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from composer.errors import ComposerError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_language_model(path_or_name: str | os.PathLike[str]) -> None:
    """Refuse what is neither the folder of a language model nor a name on the hub.

    What exists on disk, or looks like a path, is never taken for a name. Raises ComposerError.
    """
    path, given = Path(path_or_name).expanduser(), str(path_or_name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ComposerError(f"{path} has no config.json: give the folder of a language model.")
        if not any(path.glob("*.safetensors")):
            raise ComposerError(
                f"{path} has no .safetensors weights: others are not opened, for they can run code."
                " Save the model again with safe_serialization."
            )
        return
    if path.exists() or not _HUB_NAME.fullmatch(given) or given.startswith((".", "~", "/")):
        raise ComposerError(f"There is no language model folder {given}: check the path.")


def check_adapter(folder: Path) -> None:
    """Refuse what is not the folder of an adapter. Raises ComposerError."""
    if not (folder / "adapter_config.json").is_file():
        raise ComposerError(
            f"{folder} has no adapter_config.json: give the folder of a MixLoRA adapter, or of a "
            "LoRA of peft's."
        )
