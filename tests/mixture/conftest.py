"""Tiny models of the real classes, and experts for them."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from gated_hosts import HOSTS
from tiny_models import TEXT_TARGETS, UNET_TARGETS, Experts, with_peft
from transformers import CLIPTextConfig, CLIPTextModel

from composer.mixture import GRANULARITIES

HERE = Path(__file__).parent
# Of the product of hosts and granularities, what learned gates are tested on always: each host
# meets two granularities, and each granularity two hosts. The other half is slow.
ALWAYS = {
    (host, granularity)
    for (i, host), (j, granularity) in product(enumerate(HOSTS), enumerate(GRANULARITIES))
    if (i + j) % 4 < 2
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.path.name.startswith("test_mixture_learned"):
            callspec: Any = getattr(item, "callspec", None)
            values = {} if callspec is None else callspec.params
            case = (values.get("kind"), values.get("granularity"))
            if None not in case and case not in ALWAYS:
                item.add_marker(pytest.mark.slow)


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
