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
from composer.fusions.own_file import OwnFacts, OwnKind, read_whole
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
    subject="This MixLoRA was",
    again="download or train it again",
    anew="train one for this model",
    dtypes=("F32", "F16", "BF16"),
)


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
class MixLoraFacts(OwnFacts):
    """The metadata of such a file.

    sets: what it has learned, all at once.
    training: the settings, the losses and the experts' loads, as plain values.
    """

    kind = KIND
    settings: MixLoraSettings
    sets: tuple[LearnedSet, ...]
    title: str = ""
    description: str = ""
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])


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
        values = {
            "model": self.model,
            "model_hash": self.model_hash,
            "settings": self.settings.to_json(),
            "sets": [asdict(one) for one in self.sets],
            "title": self.title,
            "description": self.description,
            "training": dict(self.training),
        }
        KIND.write(path, values, tensors)

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
    """The metadata of a file; its tensors are checked by their shapes, and none is read.

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
    """The fields of `MixLoraFacts`; its tensors fit them."""
    facts = KIND.parse(header, _fields)
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    check_against_settings(shapes, facts["settings"], header.path, source="its metadata")
    return facts


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": str(values["model"]),
        "model_hash": str(values["model_hash"]),
        "settings": MixLoraSettings.from_json(values["settings"]),
        "sets": tuple(LearnedSet(**one) for one in values["sets"]),
        "title": str(values.get("title", "")),
        "description": str(values.get("description", "")),
        "training": dict(values["training"]),
    }
    if not facts["sets"]:
        raise ValueError("it names no image set")
    return facts
