"""Files of Composer's own kinds: safetensors with JSON in their metadata, and its checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from composer.errors import ComposerError
from composer.experts.header import Header, parse_header, read_header
from composer.files import write_atomically
from composer.outside import parse_object

Facts = TypeVar("Facts")


@dataclass(frozen=True, kw_only=True)
class OwnKind:
    """A kind of file.

    key: of the metadata, whose value is a JSON object.
    version: the one that is written and read.
    called, holds, training: for messages: "gate file", "gates", "a training of gates".
    subject: "These gates were".
    again: what to do with one that cannot be used; anew: with one for another model.
    dtypes: of its tensors.
    """

    key: str
    version: int
    called: str
    holds: str
    training: str
    subject: str
    again: str
    anew: str
    dtypes: tuple[str, ...]

    def parse(self, header: Header, build: Callable[[dict[str, Any]], Facts]) -> Facts:
        """The metadata of a file. build: makes the facts of the JSON object.

        Raises:
            ComposerError: it is of another kind, damaged, or of another version.
        """
        path, values = header.path, self._values(header.path, header.metadata)
        try:
            facts = build(values)
        except ComposerError as error:
            raise ComposerError(f"{path}: {error}") from None
        except ValueError as error:
            raise self.damaged(path, f"its metadata is wrong ({error})") from None
        except (LookupError, TypeError, AttributeError) as error:
            raise self.damaged(path, f"its metadata lacks {error}") from None
        for name, entry in header.tensors.items():
            if entry.dtype not in self.dtypes:
                wanted = " or ".join(self.dtypes)
                raise self.damaged(path, f"{name!r} is stored as {entry.dtype} and not as {wanted}")
        return facts

    def _values(self, path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
        if self.key not in metadata:
            raise ComposerError(
                f"{path}: holds no {self.holds} of Composer. Choose a file that {self.training} "
                "has written."
            )
        try:
            values = parse_object(metadata[self.key])
        except ValueError as error:
            raise self.damaged(path, f"its metadata is no JSON of Composer ({error})") from None
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

    def write(self, path: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write a file, whole or not at all.

        values: of its metadata, beside its version; plain.

        Raises:
            ComposerError: its name does not end in .safetensors, or it cannot be written.
        """
        from safetensors.torch import save

        if path.suffix != ".safetensors":
            raise ComposerError(f"{path}: a {self.called}'s name must end in .safetensors.")
        text = json.dumps({"version": self.version, **values}, ensure_ascii=False)
        write_atomically(path, save(dict(tensors), {"format": "pt", self.key: text}))

    def damaged(self, path: Path, reason: str) -> ComposerError:
        """The error to raise for one that cannot be used."""
        again = self.again[0].upper() + self.again[1:]
        return ComposerError(f"{path}: is damaged: {reason}. {again}.")


@dataclass(frozen=True, kw_only=True)
class OwnFacts:
    """What the metadata of such a file holds. model, model_hash: what it was trained on."""

    kind: ClassVar[OwnKind]
    model: str
    model_hash: str

    def check_model(self, name: str, model_hash: str) -> None:
        """Refuse another model than the one it was trained on.

        Raises:
            ComposerError: which two they are.
        """
        if model_hash != self.model_hash:
            raise ComposerError(
                f"{self.kind.subject} trained on {self.model} ({self.model_hash[:10]}), and the "
                f"model here is {name} ({model_hash[:10]}). Load that model, or {self.kind.anew}."
            )


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
