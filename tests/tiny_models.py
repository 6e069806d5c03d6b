"""What the tests of the mixture share: calls of tiny models, and experts made by PEFT."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

UNET_TARGETS = {
    "ada": (4, 4, ["to_q", "to_k", "to_v", "to_out.0"]),
    "ink": (3, 6, ["to_q", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1"]),
    "sea": (2, 1, ["conv2", "conv_shortcut", "time_emb_proj", "conv", "to_v"]),
}
"""Rank, alpha and targets of three adapters: different ranks, partly different sites, strided and
1x1 convolutions among them."""

TEXT_TARGETS = {
    "ada": (4, 8, ["q_proj", "v_proj"]),
    "ink": (2, 2, ["q_proj", "k_proj", "out_proj", "fc1", "fc2"]),
    "sea": (3, 3, ["fc2"]),
}


@dataclass(frozen=True)
class Factors:
    """What composer.experts calls LowRank."""

    down: Tensor
    up: Tensor
    scale: float
    offset: Tensor | None = None


Experts = dict[str, dict[str, Factors]]


def unet_inputs(batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(batch, 4, 8, 8, generator=generator),
        "timestep": torch.full((batch,), 37),
        "encoder_hidden_states": torch.randn(batch, 7, 32, generator=generator),
    }


def predict(unet: nn.Module, inputs: dict[str, Tensor] | None = None) -> Tensor:
    """The U-Net's prediction."""
    with torch.no_grad():
        return unet(**(inputs or unet_inputs())).sample


def encode(text_encoder: nn.Module) -> Tensor:
    """The text encoder's last hidden state for fixed tokens."""
    with torch.no_grad():
        return text_encoder(input_ids=torch.arange(20).reshape(2, 10)).last_hidden_state


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal to the last bit, the sign of zeros included."""
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def with_peft(model: Any, part: str, targets: dict[str, Any]) -> tuple[Any, Experts]:
    """A copy of the model with PEFT adapters of random weights, and the same as experts."""
    adapted = copy.deepcopy(model)
    torch.manual_seed(7)
    for name, (rank, alpha, modules) in targets.items():
        config = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=modules, init_lora_weights=False
        )
        adapted.add_adapter(config, adapter_name=name)
    experts: Experts = {name: {} for name in targets}
    for path, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            for name in layer.lora_A:
                down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
                experts[name][f"{part}.{path}"] = Factors(down, up, layer.scaling[name])
    return adapted.eval(), experts
