"""What attach refuses, before anything is changed, and with what message."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_models import Experts, Factors, predict, same_bits
from torch import nn

from composer.errors import ComposerError
from composer.mixture import attach

SITE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def refused(model: Any, experts: Any, *words: str, part: str = "unet") -> None:
    """Attaching raises a message with these words and leaves the model as it was."""
    modules = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(ComposerError) as error:
        attach({part: model}, experts)
    for word in words:
        assert word in str(error.value)
    assert [(name, id(module)) for name, module in model.named_modules()] == modules


def test_fused_projections(unet: Any, experts: Experts) -> None:
    unet.fuse_qkv_projections()
    refused(unet, experts, "fused", "unfuse_qkv_projections()")
    unet.unfuse_qkv_projections()
    attach({"unet": unet}, experts)


def test_chunked_feed_forward(unet: Any, experts: Experts) -> None:
    from diffusers.models.attention import BasicTransformerBlock

    blocks = [m for m in unet.modules() if isinstance(m, BasicTransformerBlock)]
    blocks[-1].set_chunk_feed_forward(1, 1)
    refused(unet, experts, "chunks", "set_chunk_feed_forward(None, 0)")
    blocks[-1].set_chunk_feed_forward(None, 0)
    attach({"unet": unet}, experts)


def test_peft_layers(unet: Any, experts: Experts) -> None:
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="old")
    refused(unet, experts, "PEFT", "unload_lora_weights()")
    unet.unload_lora()
    attach({"unet": unet}, experts)


def test_attached_already(unet: Any, experts: Experts) -> None:
    mixture = attach({"unet": unet}, {"ada": experts["ada"]})
    refused(unet, {"ink": experts["ink"]}, "already", "Detach")
    mixture.detach()
    attach({"unet": unet}, {"ink": experts["ink"]})


def test_site_that_does_not_exist(unet: Any, experts: Experts) -> None:
    good = next(iter(experts["ada"].values()))
    sites = {**experts["ada"], "unet.mid_block.nothing.to_q": good}
    refused(unet, {"ada": sites}, "mid_block.nothing.to_q", "UNet2DConditionModel")


def test_part_that_was_not_given(unet: Any, experts: Experts) -> None:
    good = next(iter(experts["ada"].values()))
    sites = {**experts["ada"], "text_encoder.encoder.layers.0.mlp.fc1": good}
    refused(unet, {"ada": sites}, "text_encoder", '"unet"')


@pytest.mark.parametrize("path", ["mid_block.attentions.0", "conv_norm_out"])
def test_module_of_another_kind(unet: Any, path: str) -> None:
    good = Factors(torch.ones(1, 32), torch.ones(32, 1), 1.0)
    refused(unet, {"ada": {f"unet.{path}": good}}, path, "Linear")


def test_grouped_convolution() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, groups=4)})
    factors = Factors(torch.ones(1, 1, 3, 3), torch.ones(4, 1, 1, 1), 1.0)
    refused(model, {"ada": {"p.conv": factors}}, "ungrouped", part="p")


def test_weights_that_are_not_in_memory() -> None:
    model = nn.ModuleDict({"one": nn.Linear(3, 3, device="meta")})
    factors = Factors(torch.ones(1, 3), torch.ones(3, 1), 1.0)
    refused(model, {"ada": {"p.one": factors}}, "p.one", "in memory", part="p")


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ((2, 65), (64, 2)),
        ((2, 64), (65, 2)),
        ((2, 64), (64, 3)),
        ((2, 64, 3, 3), (64, 2, 1, 1)),
        ((2, 64), (64, 2, 3, 3)),
        ((128,), (64, 2)),
    ],
)
def test_factors_of_another_shape(
    unet: Any, experts: Experts, down: tuple[int, ...], up: tuple[int, ...]
) -> None:
    bad = Factors(torch.ones(down), torch.ones(up), 1.0)
    sites = {"good": experts["ada"], "bad": {**experts["ink"], SITE: bad}}
    refused(unet, sites, '"bad"', SITE, str(down), str(up), "(64, 64)")


def test_expert_without_sites(unet: Any, experts: Experts) -> None:
    refused(unet, {"ada": experts["ada"], "empty": {}}, '"empty"', "changes nothing")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"ada": 0.5, "bob": 1.0}, ('"bob"', '"ada", "ink", "sea"')),
        ({"ada": math.nan}, ('"ada"', "finite")),
        ({"ada": {"unet": math.inf}}, ('"ada"', "unet", "finite")),
        ({"ada": {"text_encoder": 1.0}}, ('"ada"', "text_encoder", '"unet"')),
        ({"ada": {}}, ('"ada"', '"unet"')),
    ],
)
def test_bad_weights_change_nothing(
    unet: Any, experts: Experts, weights: Any, words: tuple[str, ...]
) -> None:
    mixture = attach({"unet": unet}, experts)
    mixture.set_weights({"ada": 0.3, "sea": 0.9})
    before, held = predict(unet), mixture.weights
    with pytest.raises(ComposerError) as error:
        mixture.set_weights(weights)
    assert all(word in str(error.value) for word in words)
    assert mixture.weights == held
    assert same_bits(predict(unet), before)


def test_toggling_an_unknown_expert(unet: Any, experts: Experts) -> None:
    mixture = attach({"unet": unet}, experts)
    with pytest.raises(ComposerError, match="bob"):
        mixture.toggle("bob", False)
    assert mixture.switches == dict.fromkeys(experts, True)


def test_a_copy_of_an_attached_model_is_refused_too(unet: Any, experts: Experts) -> None:
    attach({"unet": unet}, experts)
    refused(copy.deepcopy(unet), experts, "already")
