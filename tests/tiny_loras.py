"""Small LoRAs for the tiny model, strong enough to be seen in its pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from composer.diffusion.model import Model
from composer.experts import Expert, ModuleNames, read_expert

WIDTH = 32  # of the tiny model's text and attention


def write_lora(
    path: Path, *, seed: int, width: int = WIDTH, broken: bool = False, **metadata: str
) -> Path:
    """A rank-4 LoRA in kohya's naming on attention and text encoder; `broken` puts a NaN into it.

    A `width` other than the tiny model's makes it a LoRA for another model.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (32, 32),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (32, width),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v": (32, width),
        "lora_te_text_model_encoder_layers_0_self_attn_v_proj": (width, width),
    }
    tensors: dict[str, torch.Tensor] = {}
    for site, (out, into) in sites.items():
        tensors[f"{site}.lora_down.weight"] = torch.randn(4, into, generator=generator)
        tensors[f"{site}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
        tensors[f"{site}.alpha"] = torch.tensor(4.0)
    if broken:
        tensors[f"{next(iter(sites))}.lora_up.weight"][0, 0] = float("nan")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def experts_for(model: Model, folder: Path, *names: str) -> list[Expert]:
    """Experts of different factors, read from files as users have them."""
    modules = ModuleNames.of(model.models, model=model.name)
    return [
        read_expert(write_lora(folder / f"{name}.safetensors", seed=seed), modules, name=name)
        for seed, name in enumerate(names or ("ada", "ink"))
    ]
