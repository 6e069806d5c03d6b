"""The parts of a language model that experts change, and LoRAs of PEFT's as experts for them.

A part is the module that holds the layers: `model` of Llama's kind, `encoder` and `decoder` of T5.
So a site is called as the module is in the whole model: "model.layers.0.self_attn.q_proj".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.experts import Expert, ModuleNames, read_expert

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold the layers, by name.

    Raises:
        ComposerError: an encoder and a decoder that are not the model's own two modules.
    """
    model = cast(nn.Module, getattr(model, "_orig_mod", model))
    if has_encoder(model):
        names = ("encoder", "decoder")
    else:
        names = (str(getattr(model, "base_model_prefix", "")),)
    found = {name: getattr(model, name, None) for name in names if name}
    if not found or not all(isinstance(part, nn.Module) for part in found.values()):
        raise ComposerError(
            f"{type(model).__name__} keeps its layers where Composer does not look for them: use a "
            "causal model such as Llama, Mistral or Qwen, or one of T5's kind."
        )
    return {name: cast(nn.Module, part) for name, part in found.items()}


def has_encoder(model: nn.Module) -> bool:
    """Whether a request is read by an encoder, and a decoder writes the answer."""
    return bool(getattr(cast(Any, model).config, "is_encoder_decoder", False))


def module_names(model: nn.Module, name: str) -> ModuleNames:
    """What LoRAs for this model may change; `name` is what messages call it."""
    return ModuleNames.of(parts_of(model), model=name)


def read_adapters(folders: Mapping[str, Path], model: nn.Module, name: str) -> list[Expert]:
    """LoRAs of PEFT's, by the names they are to have: each a folder with `adapter_config.json` and
    `adapter_model.safetensors`.

    Raises:
        ComposerError: a folder that holds none, another kind of adapter, a LoRA for another model,
            or one that changes more than its factors can say, as embeddings and output layers.
    """
    modules = module_names(model, name)
    experts: list[Expert] = []
    for known, folder in folders.items():
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise ComposerError(
                f"{folder} has no {WEIGHTS_FILE}: give the folder of a LoRA that PEFT wrote, in "
                "safetensors."
            )
        # what is left over is refused below, by what it belongs to
        expert = read_expert(path, modules, name=known, partial=True)
        if expert.unmatched:
            raise ComposerError(
                f"{folder} changes {expert.unmatched[0]!r}, which lies outside of the model's "
                "layers or is no pair of factors: train the LoRA on the layers' Linear modules."
            )
        experts.append(expert)
    return experts


def find_adapters(folders: Iterable[Path]) -> dict[str, Path]:
    """The adapters of PEFT's at hand, by their folders' names: each folder given, if it is one, and
    those that lie in it. The first of a name is taken."""
    found: dict[str, Path] = {}
    for folder in folders:
        try:
            inside = sorted(path for path in folder.iterdir() if path.is_dir())
        except OSError:
            inside = []
        for path in (folder, *inside):
            if (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
                found.setdefault(path.name, path)
    return found


def named_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their names.

    Raises:
        ComposerError: two have the same.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        if folder.name in named:
            raise ComposerError(
                f"Two of the LoRAs are called {folder.name!r}: rename a folder, for experts are "
                "known by their names."
            )
        named[folder.name] = folder
    return named


@torch.no_grad()
def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a model's weights, before anything is attached to it.

    They are rounded to bfloat16, so that it is the same in whichever precision they were loaded.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(cast(Iterable[tuple[str, Tensor]], model.named_parameters())):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        plain = tensor.detach()
        if plain.is_floating_point():
            plain = plain.to(torch.bfloat16)
        digest.update(plain.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
