"""One MixLoRA for pictures: a safetensors file that says which model and image sets it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.experts.header import Header, read_header
from composer.experts.supported import MIXLORA as FORMAT
from composer.fusions.own_file import OwnKind, read_whole
from composer.mixlora import MixLora, MixLoraSettings, attach_mixlora
from composer.mixlora.names import check_against_settings

ADAPTER = "pictures"
"""What the adapter of such a file is called in the model."""

KIND = OwnKind(
    key=FORMAT,
    version=1,
    called="MixLoRA",
    holds="MixLoRA for pictures",
    training="`composer train-picture-mixlora`",
    again="download or train it again",
)
_NUMBERS = ("F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class LearnedSet:
    """One image set that a MixLoRA has learned.

    trigger: the words that call it. pictures: how many there were.
    """

    trigger: str
    title: str = ""
    pictures: int = 0

    def __post_init__(self) -> None:
        """Files come from strangers."""
        for value, kind in ((self.trigger, str), (self.title, str), (self.pictures, int)):
            if type(value) is not kind:
                raise TypeError(f"a right image set: {self}")

    @property
    def name(self) -> str:
        """What people call it."""
        return self.title or self.trigger


@dataclass(frozen=True, kw_only=True)
class MixLoraFacts:
    """What a file says of itself, without its tensors.

    model, model_hash: the Stable Diffusion it was trained on.
    sets: what it has learned, all at once.
    training: the settings, the losses and the experts' loads, as plain values.
    """

    model: str
    model_hash: str
    settings: MixLoraSettings
    sets: tuple[LearnedSet, ...]
    title: str = ""
    description: str = ""
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def check_model(self, name: str, model_hash: str) -> None:
        """Refuse another model than the one it was trained on.

        Raises:
            ComposerError: which two they are.
        """
        if model_hash != self.model_hash:
            raise ComposerError(
                f"This MixLoRA was trained on {self.model} ({self.model_hash[:10]}), and the model "
                f"here is {name} ({model_hash[:10]}). Load that model, or train one for this model."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class MixLoraFile(MixLoraFacts):
    """A trained MixLoRA with all that is needed to use it rightly.

    tensors: by the names of `composer.mixlora.names`.
    """

    tensors: Mapping[str, Tensor]

    def write(self, path: Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write the file, whole or not at all.

        Raises:
            ComposerError: a number is not finite, its name does not end in .safetensors, or it
                cannot be written.
        """
        tensors = {
            name: tensor.detach().cpu().to(dtype).contiguous()
            for name, tensor in self.tensors.items()
        }
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ComposerError(
                    f"{path}: {name} holds numbers that {dtype} has no room for, and is not "
                    "written. Train with a lower learning rate, or write float32."
                )
        told = {
            "model": self.model,
            "model_hash": self.model_hash,
            "settings": self.settings.to_json(),
            "sets": [asdict(one) for one in self.sets],
            "title": self.title,
            "description": self.description,
            "training": dict(self.training),
        }
        KIND.write(path, told, tensors)

    def attach(self, unet: nn.Module, source: str = "") -> MixLora:
        """Put it into a U-Net, for use and not for training.

        source: what messages call it, a file's path.

        Raises:
            ComposerError: its tensors do not fit; the U-Net is as before.
        """
        mixlora = attach_mixlora(unet, {ADAPTER: self.settings}, seed=0)
        try:
            mixlora.load_state_dict(ADAPTER, self.tensors, source)
        except BaseException:
            mixlora.detach()
            raise
        for _, parameter in mixlora.named_parameters(ADAPTER):
            parameter.requires_grad_(False)
        return mixlora


def read_mixlora_facts(path: Path) -> MixLoraFacts:
    """What a file says of itself; its tensors are checked by their shapes, and none is read.

    Raises:
        ComposerError: it is missing, damaged, no such file, or of a later version.
    """
    return MixLoraFacts(**_facts(read_header(path)))


def read_mixlora(path: Path) -> MixLoraFile:
    """Read a file; its header is checked before any tensor is read.

    Raises:
        ComposerError: it is missing, damaged, no such file, or of a later version.
    """
    header, data = read_whole(path)
    return MixLoraFile(**_facts(header), tensors=KIND.load(path, data))


def _facts(header: Header) -> dict[str, Any]:
    """The fields of `MixLoraFacts`."""
    path = header.path
    told = KIND.told(path, header.metadata)
    try:
        facts: dict[str, Any] = {
            "model": str(told["model"]),
            "model_hash": str(told["model_hash"]),
            "settings": MixLoraSettings.from_json(told["settings"]),
            "sets": tuple(LearnedSet(**one) for one in told["sets"]),
            "title": str(told.get("title", "")),
            "description": str(told.get("description", "")),
            "training": dict(told["training"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ComposerError):
            raise KIND.damaged(path, str(error).rstrip(".")) from None
        raise KIND.damaged(path, f"what it says of itself lacks {error}") from None
    if not facts["sets"]:
        raise KIND.damaged(path, "it names no image set")
    for name, entry in header.tensors.items():
        if entry.dtype not in _NUMBERS:
            raise KIND.damaged(path, f"{name!r} is stored as {entry.dtype}")
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    check_against_settings(shapes, facts["settings"], path, source="its metadata")
    return facts
