"""A model of a family's published size and a LoRA for it, both of random numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from composer.diffusion.folder import read_json
from composer.diffusion.load import published_tokenizer
from composer.diffusion.model import Model
from composer.families import Family

SPREAD = 0.02
"""The deviation of random weights: small enough that no step of a model overflows."""

_NETWORKS = {
    "unet": ("UNet2DConditionModel", "diffusion_pytorch_model"),
    "vae": ("AutoencoderKL", "diffusion_pytorch_model"),
}
_ATTENTION = ("Transformer2DModel", "CLIPAttention", "CLIPMLP")
"""Where sd-scripts looks for what it trains."""


def write_model(
    folder: Path, configs: Path, family: Family, *, dtype: torch.dtype, pixels: int
) -> Path:
    """A diffusers folder of these configs with random weights.

    configs: the folder of the configs.
    dtype: of the numbers in its files.
    pixels: the side of the pictures that the model says it makes.
    """
    ignored = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(configs, folder, ignore=ignored, dirs_exist_ok=True)
    for encoder in family.encoders:
        if not (folder / encoder.tokenizer).is_dir():
            published_tokenizer(encoder.pads).save_pretrained(folder / encoder.tokenizer)
    unet = folder / "unet" / "config.json"
    vae = read_json(folder / "vae" / "config.json")
    side = pixels // 2 ** (len(vae["block_out_channels"]) - 1)
    unet.write_text(json.dumps({**read_json(unet), "sample_size": side}), encoding="utf-8")
    for part in (*family.parts, "vae"):
        with torch.device("meta"):
            network = _network(folder / part, part, pooled=part == family.pooled)
        stem = _NETWORKS.get(part, ("", "model"))[1]
        tensors = {name: _random(name, its, dtype) for name, its in network.state_dict().items()}
        _save(tensors, folder / part / f"{stem}.safetensors")
    return folder


def _network(folder: Path, part: str, *, pooled: bool) -> Any:
    if part in _NETWORKS:
        kind: Any = getattr(import_module("diffusers"), _NETWORKS[part][0])
        return kind.from_config(read_json(folder / "config.json"))
    transformers: Any = import_module("transformers")
    kind = transformers.CLIPTextModelWithProjection if pooled else transformers.CLIPTextModel
    return kind(transformers.CLIPTextConfig.from_pretrained(folder))


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    library: Any = import_module("safetensors.torch")
    library.save_file(tensors, path)


def _random(name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    if like.ndim < 2:  # of norms, and biases
        fill = torch.ones if name.endswith("weight") else torch.zeros
        return fill(like.shape, dtype=dtype)
    return torch.empty(like.shape, dtype=dtype).normal_(std=SPREAD)


def rule_of_kohya(model: Model) -> dict[str, list[int]]:
    """The names and shapes of a LoRA of rank 8 by the rule of sd-scripts: every linear layer and
    1 x 1 convolution of the U-Net's transformers and of the text encoders' layers."""
    prefixes = {"unet": "lora_unet_"} | {e.part: e.kohya for e in model.family.encoders}
    found: dict[str, list[int]] = {}
    for part, root in model.models.items():
        for path in _trained(root):
            weight = cast(Tensor, root.get_submodule(path).weight)
            ones = [1] * (weight.ndim - 2)
            inside = path if part == "unet" else f"text_model.{path.removeprefix('text_model.')}"
            name = f"{prefixes[part]}{inside.replace('.', '_')}"
            found[f"{name}.lora_down.weight"] = [8, weight.shape[1], *ones]
            found[f"{name}.lora_up.weight"] = [weight.shape[0], 8, *ones]
            found[f"{name}.alpha"] = []
    return found


def _trained(root: nn.Module) -> list[str]:
    found: dict[str, None] = {}
    for above, module in cast("Iterator[tuple[str, nn.Module]]", root.named_modules()):
        if type(module).__name__ in _ATTENTION:
            for path, layer in cast("Iterator[tuple[str, nn.Module]]", module.named_modules()):
                flat = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
                if isinstance(layer, nn.Linear) or flat:
                    found[f"{above}.{path}"] = None
    return list(found)


def write_lora(folder: Path, shapes: Mapping[str, Sequence[int]], *, seed: int) -> Path:
    """A LoRA with tensors of these names and shapes, in float16; its alpha is its rank where the
    file says one, and PEFT's config is beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def tensor(name: str, shape: Sequence[int]) -> Tensor:
        if name.endswith("alpha"):
            return torch.tensor(8.0)
        return (torch.randn(list(shape), generator=generator) * SPREAD).half()

    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor(name, shape) for name, shape in shapes.items()}
    _save(tensors, path)
    rank = next((s[0] for n, s in shapes.items() if n.endswith("lora_A.weight")), 8)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
