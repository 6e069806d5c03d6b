"""MixLoRA checkpoints: a folder with `adapter_config.json` and `adapter_model.safetensors`.

The names of the tensors are the reference's; see `composer.mixlora.names`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.experts.header import Header, parse_header, read_header
from composer.files import write_atomically
from composer.language.mixlora_config import MixLoraConfig, parse_config
from composer.language.tensor_names import modern
from composer.mixlora import MixLora, attach_mixlora
from composer.mixlora.names import check_against_settings

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

MODEL_TYPE = "composer.base_model_type"
"""In the header's metadata, what kind of model an adapter was made for, such as "llama"."""

_MAX_CONFIG_BYTES = 2**20
_NUMBERS = ("F64", "F32", "F16", "BF16")


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
    tensors = mixlora.state_dict(name)
    kind = _model_type(mixlora.model)
    known = {MODEL_TYPE: kind} if kind else {}
    config = cast(MixLoraConfig, mixlora.configs[name])  # of the kind that was attached
    write_adapter(folder, config, tensors, metadata={**(metadata or {}), **known})


def write_adapter(
    folder: Path,
    config: MixLoraConfig,
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write settings and tensors, as `save_adapter` does."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ComposerError(
                f"{folder}: {name} holds NaN or infinite numbers, and is not written. Train with "
                "a lower learning rate."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ComposerError(
            f"{folder} cannot be made ({error.strerror}). Give another folder."
        ) from error
    whole = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    text = json.dumps(config.to_reference(), indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / WEIGHTS_FILE, save(whole, {"format": "pt", **(metadata or {})}))
    write_atomically(folder / CONFIG_FILE, text.encode())


def read_adapter(folder: Path) -> MixLoraCheckpoint:
    """Read an adapter's folder. Legacy names become today's.

    Raises:
        ComposerError: a file is missing or damaged, only a `.bin` is there (`composer convert`
            makes the other of it), the settings cannot be used, or tensors do not fit them.
    """
    config = read_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.exists() and (folder / PICKLE_FILE).exists():
        raise ComposerError(
            f"{folder}: holds {PICKLE_FILE} and no {WEIGHTS_FILE}. Pickles can run any program "
            f"when they are opened, so they are never loaded here: make the other of it with "
            f"`composer convert {folder}`."
        )
    _check_tensors(read_header(path), config)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ComposerError(f"{path}: cannot be read ({error}). Check its rights.") from error
    # once more, now on the very bytes that are used
    header = parse_header(data, size=len(data), path=path)
    _check_tensors(header, config)
    try:
        tensors = modern(load(data))
    except SafetensorError as error:
        raise ComposerError(
            f"{path}: is refused by the safetensors library ({error}). Download the file again."
        ) from error
    return MixLoraCheckpoint(path=path, config=config, tensors=tensors, metadata=header.metadata)


def read_config(folder: Path) -> MixLoraConfig:
    """The settings of an adapter's folder.

    Raises:
        ComposerError: the file is missing, too large or cannot be used.
    """
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ComposerError(f"{path}: is larger than any such file. Download it again.")
        return parse_config(path.read_bytes(), path)
    except OSError as error:
        raise ComposerError(
            f"{path}: cannot be read ({error.strerror}). Give the folder of a MixLoRA adapter, "
            f"with {CONFIG_FILE} and {WEIGHTS_FILE} in it."
        ) from error


def attach_checkpoints(model: nn.Module, folders: Mapping[str, Path]) -> MixLora:
    """Attach trained adapters from their folders, by the names they are to have.

    All files are read and checked before anything is attached; if one does not fit the model, it is
    as before.

    Raises:
        ComposerError: as `read_adapter`, or an adapter was made for another model.
    """
    found = {name: read_adapter(folder) for name, folder in folders.items()}
    kind = _model_type(model)
    for checkpoint in found.values():
        made_for = checkpoint.metadata.get(MODEL_TYPE)
        if kind and made_for and made_for != kind:
            raise ComposerError(
                f"{checkpoint.path}: was made for a model of the type {made_for}, and this one is "
                f"{kind}. Choose the model it was made for"
                + (f": {checkpoint.config.base_model}." if checkpoint.config.base_model else ".")
            )
    # a seed, so that the caller's random numbers are not used up for weights that are replaced
    mixlora = attach_mixlora(model, {name: one.config for name, one in found.items()}, seed=0)
    try:
        for name, one in found.items():
            mixlora.load_state_dict(name, one.tensors, source=str(one.path))
    except BaseException:
        mixlora.detach()
        raise
    return mixlora


def _check_tensors(header: Header, config: MixLoraConfig) -> None:
    """Shapes and number formats, before any tensor is read."""
    for name, entry in header.tensors.items():
        if entry.dtype not in _NUMBERS:
            raise ComposerError(
                f"{header.path}: stores {name!r} as {entry.dtype}; save it as F32, F16 or BF16."
            )
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    check_against_settings(modern(shapes), config, header.path)


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", "") or "")
