"""Files of Composer's own kinds: safetensors that say of themselves, as JSON, what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from composer.errors import ComposerError
from composer.experts.header import Header, parse_header, read_header
from composer.files import write_atomically
from composer.outside import parse_object


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
            values = parse_object(metadata[self.key])
        except ValueError as error:
            reason = f"what it says of itself is no JSON of Composer ({error})"
            raise self.damaged(path, reason) from None
        if values.get("version") != self.version:
            raise ComposerError(
                f"{path}: is a {self.called} of version {values.get('version')}, and this Composer "
                f"reads version {self.version}. Update Composer, or {self.again}."
            )
        return values

    def load(self, path: Path, data: bytes) -> dict[str, Tensor]:
        """The tensors in a file's bytes, as `read_whole` gave them.

        Raises:
            ComposerError: the format's own library refuses them.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(data)
        except SafetensorError as error:
            raise self.damaged(path, f"the safetensors library refuses it ({error})") from None

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


def read_whole(path: Path) -> tuple[Header, bytes]:
    """A file's bytes, and the header that was checked in these very bytes.

    Raises:
        ComposerError: it is missing, cannot be read, or has no sound header.
    """
    read_header(path)  # first: what is no such file is not read whole
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ComposerError(f"{path}: cannot be read ({error}). Check its rights.") from error
    # once more, for the file may have been replaced meanwhile
    return parse_header(data, size=len(data), path=path), data
