"""A reference checkpoint's pickle becomes safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor

from composer.errors import ComposerError
from composer.experts.pickles import open_pickle
from composer.language.checkpoint import PICKLE_FILE, WEIGHTS_FILE, read_config, write_adapter
from composer.language.tensor_names import modern
from composer.mixlora.names import check_against_settings


def convert_adapter(source: Path, output: Path) -> Path:
    """Write the MixLoRA adapter in the folder `source`, a pickle, as safetensors to `output`.

    Legacy names become today's. Returns the path of the file written.

    Raises:
        ComposerError: there is no pickle, PyTorch is too old, it holds anything but tensors, or
            they do not fit the settings beside it. Nothing is written then.
    """
    path = source / PICKLE_FILE
    if not path.is_file():
        raise ComposerError(
            f"{source}: has no {PICKLE_FILE} to convert. Give the folder of a MixLoRA adapter as "
            "MoE-PEFT or the package mixlora wrote it."
        )
    config = read_config(source)
    tensors = modern(_open(path))
    check_against_settings({name: tuple(t.shape) for name, t in tensors.items()}, config, path)
    write_adapter(output, config, tensors)
    return output / WEIGHTS_FILE


def _open(path: Path) -> dict[str, Tensor]:
    found = open_pickle(path)
    named = cast("dict[Any, Any]", found) if isinstance(found, dict) else {}
    tensors = {
        name: tensor.detach().clone()
        for name, tensor in named.items()
        if isinstance(name, str) and isinstance(tensor, Tensor) and tensor.is_floating_point()
    }
    if not tensors or len(tensors) != len(named):
        raise ComposerError(
            f"{path}: does not hold tensors by their names alone. Give a MixLoRA adapter."
        )
    return tensors
