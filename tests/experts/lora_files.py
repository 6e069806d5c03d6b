"""LoRA files with the names and shapes of real ones, made for the tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from composer.experts import LowRank, ModuleNames

# Kinds of module that LoRAs change: attention, feed-forward, projections, and LoCon's convolutions.
UNET = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONV = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

# One for the whole file: diffusers 0.42 loses the alphas of kohya files that have several.
ALPHA = 3.0

ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"

SMALL = ModuleNames(
    model="small",
    shapes={
        "unet": {
            "down_blocks.0.resnets.0.conv1": (32, 32, 3, 3),
            "down_blocks.0.attentions.0.proj_in": (32, 32, 1, 1),
            ATTENTION.removeprefix("unet."): (32, 32),
        },
        "text_encoder": {"encoder.layers.0.self_attn.q_proj": (32, 32)},
    },
)


def random_sites(
    names: ModuleNames, endings: Iterable[str], *, seed: int = 0
) -> dict[str, LowRank]:
    """Random factors at every module whose name ends so; ranks differ, and scales with them."""
    generator = torch.Generator().manual_seed(seed)
    sites: dict[str, LowRank] = {}
    for part, shapes in names.shapes.items():
        for name, (outs, *ins) in shapes.items():
            if name.endswith(tuple(endings)):
                rank = 2 + len(sites) % 3
                kernel = [1] * (len(ins) - 1)
                sites[f"{part}.{name}"] = LowRank(
                    down=torch.randn(rank, *ins, generator=generator),
                    up=torch.randn(outs, rank, *kernel, generator=generator),
                    scale=ALPHA / rank,
                )
    return sites


def save(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def kohya_pair(rank: int = 2, ins: int = 32, outs: int = 32) -> dict[str, Tensor]:
    """One module's three tensors, at the text keys of the tiny model."""
    return {
        f"{KOHYA}.lora_down.weight": torch.ones(rank, ins),
        f"{KOHYA}.lora_up.weight": torch.ones(outs, rank),
        f"{KOHYA}.alpha": torch.tensor(float(rank)),
    }


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    """A file with any header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path
