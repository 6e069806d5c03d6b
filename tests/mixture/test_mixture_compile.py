"""Under torch.compile: one graph, and nothing that a user changes compiles it again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import Experts, Factors, predict, same_bits
from torch import Tensor, nn

from composer.mixture import attach


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_weights_and_switches_recompile_nothing(unet: Any, experts: Experts) -> None:
    """Regions with Linear sites and with plain and strided convolutions."""
    base = predict(unet)
    mixture = attach({"unet": unet}, experts)
    twin = copy.deepcopy(mixture)
    compiled: Any = twin.models["unet"]
    block = compiled.down_blocks[0]
    for region in (block.attentions[0], block.resnets[0], block.downsamplers[0]):
        region.compile(fullgraph=True, backend="eager")
    predict(compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for weights in ({"ada": 0.8, "ink": 0.5}, {"sea": 1.0}, {"ada": -1.0}):
            for each in (mixture, twin):
                each.set_weights(weights)
            assert_near(predict(compiled), predict(unet))
        for name in mixture.names:
            for each in (mixture, twin):
                each.toggle(name, False)
            assert_near(predict(compiled), predict(unet))
        assert_near(predict(compiled), base)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_whole_unet_recompiles_nothing(unet: Any, experts: Experts, backend: str) -> None:
    base = predict(unet)
    mixture = attach({"unet": unet}, experts)
    compiled = torch.compile(unet, fullgraph=True, backend=backend)
    predict(compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for weights in ({"ada": 0.8, "ink": 0.5}, {"sea": 1.0}, {"ada": -1.0}):
            mixture.set_weights(weights)
            assert_near(predict(compiled), predict(unet))
        for name in mixture.names:
            mixture.toggle(name, False)
            assert_near(predict(compiled), predict(unet))
        assert_near(predict(compiled), base)


def test_attached_and_detached_after_compilation(unet: Any, experts: Experts) -> None:
    """The model is given as torch.compile returned it."""
    path = "down_blocks.0.resnets.0"
    block = unet.get_submodule(path)
    inside = {
        name: {
            site.replace(path + ".", ""): factors for site, factors in sites.items() if path in site
        }
        for name, sites in experts.items()
        if name != "ada"
    }
    compiled: Any = torch.compile(block, fullgraph=True, backend="eager")
    hidden, time = torch.randn(2, 32, 8, 8), torch.randn(2, 128)
    with torch.no_grad():
        base = compiled(hidden, time)
        with attach({"unet": compiled}, inside) as mixture:
            mixture.set_weights({"ink": 0.8, "sea": 0.5})
            mixed = compiled(hidden, time)
            assert_near(mixed, block(hidden, time))
            assert float((mixed - base).abs().max()) > 0.01
        assert same_bits(compiled(hidden, time), base)


def test_no_active_expert_is_the_base_to_the_sign_of_zero() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(-0.0)
    hidden = torch.tensor([[-1.0, -2.0]])
    before = model(hidden)
    factors = Factors(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    mixture = attach({"part": model}, {"ada": {"part.0": factors}})
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert not torch.equal(compiled(hidden), before)
    mixture.toggle("ada", False)
    assert same_bits(compiled(hidden), before)
