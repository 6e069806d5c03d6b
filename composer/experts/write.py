"""Write a LoRA file that other programs read too, and that says what it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.experts.hashes import tensor_hash
from composer.experts.info import LoraInfo
from composer.experts.low_rank import LowRank
from composer.families import SDXL, STABLE_DIFFUSION_1
from composer.files import write_atomically

Naming = Literal["kohya", "diffusers"]

_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


def write_lora(
    path: Path,
    sites: Mapping[str, LowRank],
    info: LoraInfo,
    *,
    naming: Naming = "kohya",
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the factors at `sites` ("unet.…", "text_encoder.…") and what `info` says to `path`.

    kohya naming stores alpha (scale · rank) beside the factors. diffusers naming has no place for
    it that all its readers know, so there the scale is multiplied into `up`. `info.extra` goes
    into the metadata under its own keys. The same input gives the same bytes; the file is written
    whole or not at all.

    Raises:
        ComposerError: there are no sites, a number is NaN or too large for `dtype`, the name does
            not end in .safetensors, or the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise ComposerError(f"{path}: a LoRA's name must end in .safetensors.")
    if not sites:
        raise ComposerError(f"{path}: no site is given, so there is nothing to write.")
    name_tensors = _kohya_tensors if naming == "kohya" else _diffusers_tensors
    tensors = {name: tensor.to(dtype) for name, tensor in name_tensors(sites)}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ComposerError(
                f"{path}: {name!r} has numbers that are NaN or too large for {_DTYPES[dtype]}. "
                "Train with a lower learning rate, or write in float32."
            )
    data = b"".join(_bytes(tensor) for _, tensor in sorted(tensors.items()))
    metadata = _metadata(path, sites, info)
    metadata["sshs_model_hash"] = tensor_hash(bytes(8) + data)
    write_atomically(path, _header(tensors, metadata) + data)


def _kohya_tensors(sites: Mapping[str, LowRank]) -> Iterable[tuple[str, Tensor]]:
    two_encoders = any(site.startswith(f"{SDXL.pooled}.") for site in sites)
    encoders = (SDXL if two_encoders else STABLE_DIFFUSION_1).encoders
    prefixes = {"unet": "lora_unet_", **{encoder.part: encoder.kohya for encoder in encoders}}
    for site, factors in sites.items():
        part, module = _file_name(site)
        name = prefixes[part] + module.replace(".", "_")
        yield f"{name}.lora_down.weight", factors.down
        yield f"{name}.lora_up.weight", factors.up
        yield f"{name}.alpha", torch.tensor(factors.scale * factors.rank)
        if (bias := factors.bias()) is not None:
            yield f"{name}.diff_b", bias


def _diffusers_tensors(sites: Mapping[str, LowRank]) -> Iterable[tuple[str, Tensor]]:
    for site, factors in sites.items():
        name = ".".join(_file_name(site))
        yield f"{name}.lora_A.weight", factors.down
        yield f"{name}.lora_B.weight", factors.up.float() * factors.scale
        if (bias := factors.bias()) is not None:
            yield f"{name}.lora_B.bias", bias


def _file_name(site: str) -> tuple[str, str]:
    """The part of a site, and its module as files spell it: text encoders under `text_model`."""
    part, _, module = site.partition(".")
    if part != "unet" and module.startswith("encoder."):
        module = f"text_model.{module}"
    return part, module


def _metadata(path: Path, sites: Mapping[str, LowRank], info: LoraInfo) -> dict[str, str]:
    ranks = [factors.rank for factors in sites.values()]
    rank = max(set(ranks), key=ranks.count)
    title = info.title or path.stem
    alphas = {factors.scale * factors.rank for factors in sites.values()}
    known = {
        "composer.trigger": info.trigger,
        "composer.role": info.role,
        "composer.base": info.base,
        "composer.title": title,
        "composer.description": info.description,
        "composer.negative": info.negative,
        "composer.weight": f"{info.weight:g}",
        "composer.rank": str(rank),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.trigger_phrase": info.trigger,
        "modelspec.description": info.description,
        "ss_output_name": path.stem,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
        "format": "pt",
    }
    return dict(info.extra) | {key: value for key, value in known.items() if value}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name, tensor in sorted(tensors.items()):
        end = position + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    # The data starts at a multiple of eight.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
