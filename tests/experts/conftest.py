"""Tiny real models from the real classes, and LoRA files made for them."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from composer.experts import ModuleNames


@pytest.fixture(scope="session")
def tiny_models() -> dict[str, torch.nn.Module]:
    """A U-Net with cross-attention blocks and plain ones, and a text encoder, at width 32."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
        )
    )
    return {"unet": unet.eval(), "text_encoder": text_encoder.eval()}


@pytest.fixture(scope="session")
def tiny_names(tiny_models: dict[str, torch.nn.Module]) -> ModuleNames:
    return ModuleNames.of(tiny_models, model="tiny")
