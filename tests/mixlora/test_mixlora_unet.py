"""MixLoRA on a U-Net: its convolutions, guidance, checkpointing, and LoRAs on top of it."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from tiny_ffns import attached, close, config, gradients, make, naively, run, scalar
from tiny_models import Factors, same_bits
from torch import Tensor, nn
from torch.nn import functional

from composer.errors import ComposerError
from composer.mixlora import LoraSettings, MixLora, MixLoraSettings, attach_mixlora
from composer.mixlora.adapter import AdapterSite
from composer.mixture import attach

PLAIN = LoraSettings(rank=2, alpha=3.0, dropout=0.0)


def settings(**more: Any) -> MixLoraSettings:
    told = config()
    return MixLoraSettings(
        experts=told.experts,
        router=told.router,
        **{"attention": PLAIN, "convolutions": PLAIN, **more},
    )


class NaiveConv(nn.Module):
    """The convolution with W + s B A in the place of W."""

    def __init__(self, site: AdapterSite) -> None:
        super().__init__()
        self.conv = cast(nn.Conv2d, site.base)
        self.factors = site.factors("a0")

    def forward(self, hidden: Tensor) -> Tensor:
        change = torch.einsum("or,rikl->oikl", self.factors.B[0], self.factors.A[0])
        weight = self.conv.weight + self.factors.settings.scale * change
        conv = self.conv
        return functional.conv2d(hidden, weight, conv.bias, conv.stride, conv.padding)


def naively_all(mixlora: MixLora) -> None:
    naively(mixlora)
    for path, site in mixlora.sites.items():
        if isinstance(site.base, nn.Conv2d):
            parent, _, last = path.rpartition(".")
            setattr(mixlora.model.get_submodule(parent), last, NaiveConv(site))


def test_experts_attention_and_convolutions_are_as_the_naive_loop() -> None:
    model = make("unet")
    mixlora = attached(model, cast(Any, settings()), size=0.15)
    assert sum(isinstance(site.base, nn.Conv2d) for site in mixlora.sites.values()) > 10
    assert all(".ff" in path for path in mixlora.hosts)
    model.double()
    output = run("unet", model, batch=2)
    found = gradients(mixlora, scalar(output))
    naively_all(mixlora)
    expected = run("unet", model, batch=2)
    wanted = gradients(mixlora, scalar(expected))
    assert close(output, expected)
    for path, gradient in wanted.items():
        assert gradient.abs().max() > 0, path
        assert close(found[path], gradient), path


def test_fresh_it_changes_nothing_and_detached_all_is_as_before_bit_for_bit() -> None:
    model = make("unet")
    before = run("unet", model)
    modules = [(name, id(module)) for name, module in model.named_modules()]
    mixlora = attach_mixlora(model, {"new": settings()}, seed=0)
    assert close(run("unet", model), before, 1e-6)
    mixlora.detach()
    with attached(model, cast(Any, settings())):
        assert not close(run("unet", model), before, 1e-3)
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert same_bits(run("unet", model), before)


def test_guided_rows_do_not_hear_each_other() -> None:
    model: Any = make("unet")
    attached(model, cast(Any, settings()))
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(4, 5, 16, generator=generator)
    rows = torch.cat([noisy, noisy])
    with torch.no_grad():
        together = model(rows, 37, text).sample
        alone = [model(rows[i : i + 1], 37, text[i : i + 1]).sample for i in range(4)]
    assert close(together, torch.cat(alone))


def test_gradient_checkpointing_gives_the_same_gradients_and_hears_each_router_once() -> None:
    model: Any = make("unet")
    mixlora = attached(model, cast(Any, settings()))
    model.train()
    found: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        with mixlora.record_routing() as tape:
            loss = scalar(run("unet", model))
        assert [one.host for one in tape].count(tape[0].host) == 1
        assert len(tape) == len(mixlora.hosts)
        found.append(gradients(mixlora, loss + 10.0 * mixlora.router_loss(tape, "a0")))
        assert len(tape) == len(mixlora.hosts)
    assert all(close(found[1][path], gradient) for path, gradient in found[0].items())


def test_loras_on_top_are_as_if_merged_into_the_model_below() -> None:
    model: Any = make("unet")
    generator = torch.Generator().manual_seed(5)
    lora: dict[str, Factors] = {}
    merged = copy.deepcopy(model)
    for path, module in model.named_modules():
        if path.endswith(("to_q", "ff.net.0.proj", "ff.net.2", "conv1", "proj_in")):
            out, into, *kernel = module.weight.shape
            down = 0.2 * torch.randn(2, into, *kernel, generator=generator)
            up = 0.2 * torch.randn(out, 2, *(1 for _ in kernel), generator=generator)
            lora[f"unet.{path}"] = Factors(down, up, 0.5)
            change = (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
            merged.get_submodule(path).weight.data.add_(0.8 * 0.5 * change)
    before = run("unet", model)
    mixlora = attached(model, cast(Any, settings()))
    alone = run("unet", model)
    mixture = attach({"unet": model}, {"ink": lora})
    mixture.set_weights({"ink": 0.8})
    output = run("unet", model)
    attached(merged, cast(Any, settings()))
    assert close(output, run("unet", merged))
    assert not close(output, alone, 1e-3)
    mixture.set_weights({})
    assert close(run("unet", model), alone, 1e-6)
    mixture.detach()
    assert same_bits(run("unet", model), alone)
    mixlora.detach()
    assert same_bits(run("unet", model), before)


def test_gates_for_each_block_stand_on_top() -> None:
    model: Any = make("unet")
    attached(model, cast(Any, settings()))
    path = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
    out, into = model.get_submodule(path).weight.shape
    down = torch.randn(1, into, generator=torch.Generator().manual_seed(2))
    lora = {f"unet.{path}": Factors(down, 0.3 * torch.ones(out, 1), 1.0)}
    alone = run("unet", model)
    with attach({"unet": model}, {"ink": lora}) as mixture:
        everywhere = run("unet", model)
    with attach({"unet": model}, {"ink": lora}, granularity="block") as mixture:
        assert list(mixture.units) == ["unet.down_blocks.0.attentions.0"]
        assert close(run("unet", model), everywhere)
    assert not close(everywhere, alone, 1e-4)
    assert same_bits(run("unet", model), alone)


def test_refusals() -> None:
    with pytest.raises(ComposerError, match="DoRA"):
        settings(convolutions=LoraSettings(dora=True))
    with pytest.raises(ComposerError, match="no convolutions"):
        attach_mixlora(make("llama"), {"a": settings()})


def test_settings_survive_as_plain_values() -> None:
    told = settings(target_modules=("to_q", "net.2"))
    assert MixLoraSettings.from_json(told.to_json()) == told
    with pytest.raises(ComposerError, match="wings"):
        MixLoraSettings.from_json({**told.to_json(), "wings": 2})
