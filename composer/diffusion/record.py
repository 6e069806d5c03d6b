"""Everything needed to make a picture again, as plain data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from composer import __version__
from composer.diffusion.prompt import MAX_LORAS
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.outside import parse_object

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class LoraRecord:
    """A LoRA as it was used. ``sha256`` is the file's, ``tensor_hash`` that of its tensors alone.

    What another program's picture says of a hash is only its first digits, and may be of either:
    it is in ``tensor_hash``. An unknown one is empty.
    ``share`` is how many of the modules that the file changes were in the model.
    """

    name: str
    unet: float = 1.0
    text_encoder: float = 1.0
    sha256: str = ""
    tensor_hash: str = ""
    share: float = 1.0

    def __post_init__(self) -> None:
        _check(str, name=self.name, sha256=self.sha256, tensor_hash=self.tensor_hash)
        _check((int, float), unet=self.unet, text_encoder=self.text_encoder, share=self.share)


@dataclass(frozen=True, kw_only=True)
class PictureRecord:
    """How a picture was made.

    ``request`` makes this one picture (count 1, its own seed). ``fusion`` is the method's name with
    its settings. ``model_hash`` is the SHA-256 of the model, or its first digits as other programs
    write them; ``vae_name`` and ``vae_hash`` are likewise of a VAE in place of the model's.
    ``start`` is the fingerprint of the picture that it began from, if it did. ``embeddings`` have
    the SHA-256 of the files whose names stand in the prompts, or its first digits, by these names.
    ``notes`` say in words what could not be taken over from another program.
    """

    request: Request
    loras: tuple[LoraRecord, ...] = ()
    fusion: Mapping[str, Any] = field(default_factory=lambda: {"name": "weighted"})
    model_name: str = ""
    model_hash: str = ""
    vae_name: str = ""
    vae_hash: str = ""
    version: str = __version__
    start: str = ""
    embeddings: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named = {"model": self.model_name, "model_hash": self.model_hash, "start": self.start}
        named |= {"vae": self.vae_name, "vae_hash": self.vae_hash}
        _check(str, version=self.version, **named)
        _check(str, **{f"note {number}": note for number, note in enumerate(self.notes, start=1)})
        _check(Mapping, fusion=self.fusion, embeddings=self.embeddings)
        _check(str, **{f"embedding {name!r}": each for name, each in self.embeddings.items()})

    def to_json(self) -> str:
        """One line of JSON, read back by :meth:`from_json`."""
        values = dataclasses.asdict(self)
        values["fusion"] = dict(self.fusion)
        # what is as usual is left out, so that an older Composer reads the record
        for name in ("vae_name", "vae_hash", "embeddings"):
            if not values[name]:
                del values[name]
        for lora in values["loras"]:
            if lora["share"] == 1:
                del lora["share"]
        return json.dumps({"format": FORMAT, **values})

    @classmethod
    def from_json(cls, text: str) -> PictureRecord:
        """The record written by :meth:`to_json`; a damaged or newer one is an error."""
        try:
            values = parse_object(text)
            written = values.pop("format", None)
            if written != FORMAT:
                raise ComposerError(
                    f"The picture's record has format {written}, this Composer reads {FORMAT}. "
                    "Update Composer to read it."
                )
            values["request"] = Request.from_json(values["request"])
            if len(values["loras"]) > MAX_LORAS:
                raise ValueError(f"it has {len(values['loras'])} LoRAs; {MAX_LORAS} are the most")
            values["loras"] = tuple(LoraRecord(**lora) for lora in values["loras"])
            values["notes"] = tuple(values["notes"])
            return cls(**values)
        except ComposerError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ComposerError(
                f"The picture's record cannot be read ({error}). Use a picture that was not edited."
            ) from error


def _check(kind: type | tuple[type, ...], **values: object) -> None:
    """Records come out of pictures, which anybody may have written."""
    for name, value in values.items():
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"its {name.replace('_', ' ')} is {value!r}")
