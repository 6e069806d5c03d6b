"""MixLoRA checkpoints: a folder with `adapter_config.json` and `adapter_model.safetensors`.

The names of the tensors are the reference's; see `composer.language.tensor_names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from composer.language.mixlora import MixLora
from composer.language.mixlora_config import MixLoraConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class MixLoraCheckpoint:
    """One adapter as it lies on disk, checked: its settings and its tensors by name."""

    path: Path
    config: MixLoraConfig
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def save_adapter(
    mixlora: MixLora, name: str, folder: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write one adapter to a folder, made if need be: each file whole or not at all.

    metadata: further text for the file's header.

    Raises:
        ComposerError: a number is not finite, or the folder cannot be written to.
    """
    raise NotImplementedError


def read_adapter(folder: Path) -> MixLoraCheckpoint:
    """Read an adapter's folder. Legacy names become today's.

    Raises:
        ComposerError: a file is missing or damaged, only a `.bin` is there (`composer convert`
            makes the other of it), the settings cannot be used, or tensors do not fit them.
    """
    raise NotImplementedError


def attach_checkpoints(model: nn.Module, folders: Mapping[str, Path]) -> MixLora:
    """Attach trained adapters from their folders, by the names they are to have.

    All files are read and checked against the model before anything is attached.

    Raises:
        ComposerError: as `read_adapter`, or an adapter was made for another model.
    """
    raise NotImplementedError
