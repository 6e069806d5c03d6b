"""Files of Composer's own kinds: safetensors that say of themselves, as JSON, what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from composer.errors import ComposerError
from composer.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class OwnKind:
    """A kind of file.

    key: of the metadata under which it tells of itself.
    version: the one that is written and read.
    called, holds, training: for messages: "gate file", "gates", "a training of gates".
    again: what to do with one that cannot be used.
    """

    key: str
    version: int
    called: str
    holds: str
    training: str
    again: str

    def told(self, path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
        """What a file says of itself.

        Raises:
            ComposerError: it is of another kind, damaged, or of another version.
        """
        if self.key not in metadata:
            raise ComposerError(
                f"{path}: holds no {self.holds} of Composer. Choose a file that {self.training} "
                "has written."
            )
        try:
            told = cast(object, json.loads(metadata[self.key]))
        except (json.JSONDecodeError, RecursionError):
            raise self.damaged(path, "what it says of itself is no JSON") from None
        if not isinstance(told, dict):
            raise self.damaged(path, "what it says of itself is no JSON object")
        values = cast(dict[str, Any], told)
        if values.get("version") != self.version:
            raise ComposerError(
                f"{path}: is a {self.called} of version {values.get('version')}, and this Composer "
                f"reads version {self.version}. Update Composer, or {self.again}."
            )
        return values

    def write(self, path: Path, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write a file, whole or not at all.

        told: what it says of itself, beside its version; plain values.

        Raises:
            ComposerError: its name does not end in .safetensors, or it cannot be written.
        """
        from safetensors.torch import save

        if path.suffix != ".safetensors":
            raise ComposerError(f"{path}: a {self.called}'s name must end in .safetensors.")
        text = json.dumps({"version": self.version, **told}, ensure_ascii=False)
        write_atomically(path, save(dict(tensors), {"format": "pt", self.key: text}))

    def damaged(self, path: Path, reason: str) -> ComposerError:
        """The error to raise for one that cannot be used."""
        again = self.again[0].upper() + self.again[1:]
        return ComposerError(f"{path}: is damaged: {reason}. {again}.")
