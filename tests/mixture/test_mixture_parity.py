"""The weighted sum against two oracles: PEFT's adapters and dense weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_base import set_adapters_for_text_encoder
from tiny_models import Experts, encode, predict

from composer.mixture import attach

WEIGHTS = [
    {"ada": 1.0, "ink": 1.0, "sea": 1.0},
    {"ada": 1 / 3, "ink": 1 / 3, "sea": 1 / 3},
    {"ada": 0.8, "ink": 0.35},
    {"ada": 1.5, "ink": -0.5, "sea": 0.25},
    {"sea": 0.7},
]


def closeness(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_unet_equals_set_adapters(
    unet: Any, peft_unet: tuple[Any, Experts], weights: dict[str, float]
) -> None:
    adapted, experts = peft_unet
    base = predict(unet)
    adapted.set_adapters(list(weights), list(weights.values()))
    expected = predict(adapted)
    mixture = attach({"unet": unet}, experts)
    mixture.set_weights(weights)
    assert closeness(predict(unet), expected) < 1e-5
    assert closeness(base, expected) > 1e-2


@pytest.mark.parametrize("weights", WEIGHTS)
def test_text_encoder_equals_set_adapters(
    text_encoder: Any, peft_text_encoder: tuple[Any, Experts], weights: dict[str, float]
) -> None:
    adapted, experts = peft_text_encoder
    base = encode(text_encoder)
    set_adapters_for_text_encoder(list(weights), adapted, list(weights.values()))
    expected = encode(adapted)
    mixture = attach({"text_encoder": text_encoder}, experts)
    mixture.set_weights(weights)
    assert closeness(encode(text_encoder), expected) < 1e-5
    assert closeness(base, expected) > 1e-2


@pytest.mark.parametrize("weights", WEIGHTS)
def test_unet_equals_dense_weights(unet: Any, experts: Experts, weights: dict[str, float]) -> None:
    dense = copy.deepcopy(unet)
    for name, number in weights.items():
        for site, factors in experts[name].items():
            weight = dense.get_submodule(site.removeprefix("unet.")).weight.data
            up, down = factors.up.detach().flatten(1), factors.down.detach().flatten(1)
            weight += number * factors.scale * (up @ down).reshape(weight.shape)
    attach({"unet": unet}, experts).set_weights(weights)
    assert closeness(predict(unet), predict(dense)) < 1e-5


@pytest.mark.parametrize("name", ["ada", "ink", "sea"])
def test_one_hot_is_that_lora_alone(unet: Any, peft_unet: tuple[Any, Experts], name: str) -> None:
    adapted, experts = peft_unet
    adapted.set_adapters([name], [1.0])
    alone = copy.deepcopy(unet)
    attach({"unet": unet}, experts).set_weights({name: 1.0})
    attach({"unet": alone}, {name: experts[name]})
    assert closeness(predict(unet), predict(adapted)) < 1e-5
    assert closeness(predict(unet), predict(alone)) < 1e-6


def test_switched_off_is_left_out(unet: Any, peft_unet: tuple[Any, Experts]) -> None:
    adapted, experts = peft_unet
    adapted.set_adapters(["ada", "sea"], [0.8, 0.5])
    mixture = attach({"unet": unet}, experts)
    mixture.set_weights({"ada": 0.8, "ink": 0.9, "sea": 0.5})
    mixture.toggle("ink", False)
    assert closeness(predict(unet), predict(adapted)) < 1e-5
    mixture.toggle("ink", True)
    adapted.set_adapters(["ada", "ink", "sea"], [0.8, 0.9, 0.5])
    assert closeness(predict(unet), predict(adapted)) < 1e-5


def test_parts_have_weights_of_their_own(
    unet: Any,
    text_encoder: Any,
    peft_unet: tuple[Any, Experts],
    peft_text_encoder: tuple[Any, Experts],
) -> None:
    experts = {name: peft_unet[1][name] | peft_text_encoder[1][name] for name in ("ada", "ink")}
    mixture = attach({"unet": unet, "text_encoder": text_encoder}, experts)
    mixture.set_weights({"ada": {"unet": 0.8, "text_encoder": 0.3}, "ink": 0.5})
    peft_unet[0].set_adapters(["ada", "ink"], [0.8, 0.5])
    set_adapters_for_text_encoder(["ada", "ink"], peft_text_encoder[0], [0.3, 0.5])
    assert closeness(predict(unet), predict(peft_unet[0])) < 1e-5
    assert closeness(encode(text_encoder), encode(peft_text_encoder[0])) < 1e-5
    assert mixture.weights == {
        "ada": {"unet": 0.8, "text_encoder": 0.3},
        "ink": {"unet": 0.5, "text_encoder": 0.5},
    }
