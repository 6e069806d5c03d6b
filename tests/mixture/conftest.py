"""Tiny models of the real classes, and experts for them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tiny_models import TEXT_TARGETS, UNET_TARGETS, Experts, with_peft
from transformers import CLIPTextConfig, CLIPTextModel


@pytest.fixture(scope="session")
def _unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


@pytest.fixture(scope="session")
def _text_encoder() -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
    )
    return CLIPTextModel(config).eval()


@pytest.fixture
def unet(_unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A U-Net of Stable Diffusion 1.5's kind."""
    return copy.deepcopy(_unet)


@pytest.fixture
def text_encoder(_text_encoder: CLIPTextModel) -> CLIPTextModel:
    """A CLIP text encoder."""
    return copy.deepcopy(_text_encoder)


@pytest.fixture(scope="session")
def peft_unet(_unet: UNet2DConditionModel) -> tuple[Any, Experts]:
    """The U-Net with three PEFT adapters, and these as experts."""
    return with_peft(_unet, "unet", UNET_TARGETS)


@pytest.fixture(scope="session")
def peft_text_encoder(_text_encoder: CLIPTextModel) -> tuple[Any, Experts]:
    """The text encoder with three PEFT adapters, and these as experts."""
    return with_peft(_text_encoder, "text_encoder", TEXT_TARGETS)


@pytest.fixture
def experts(peft_unet: tuple[Any, Experts]) -> Experts:
    """Three experts for the U-Net."""
    return {name: dict(sites) for name, sites in peft_unet[1].items()}
