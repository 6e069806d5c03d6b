"""Attach and detach are inverses, bit for bit, and a switched-off mixture is the base."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from tiny_models import Experts, Factors, predict, same_bits
from torch import nn

from composer.mixture import Site, attach


def modules_of(model: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]


def test_no_experts_is_the_base(unet: Any) -> None:
    before, modules = predict(unet), modules_of(unet)
    mixture = attach({"unet": unet}, {})
    mixture.set_weights({})
    assert mixture.names == ()
    assert modules_of(unet) == modules
    assert same_bits(predict(unet), before)


@pytest.mark.parametrize("how", ["weights", "switches"])
def test_no_active_expert_is_the_base(unet: Any, experts: Experts, how: str) -> None:
    before = predict(unet)
    mixture = attach({"unet": unet}, experts)
    assert not torch.equal(predict(unet), before)
    if how == "weights":
        mixture.set_weights({})
    for name in mixture.names if how == "switches" else ():
        mixture.toggle(name, False)
    assert same_bits(predict(unet), before)


def test_no_active_expert_keeps_the_sign_of_zero_and_hides_infinities() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(-0.0)
    hidden = torch.tensor([[-1.0, -2.0]])
    before = model(hidden)
    broken = Factors(torch.full((1, 2), torch.inf), torch.ones(2, 1), 1.0)
    mixture = attach({"part": model}, {"broken": {"part.0": broken}})
    mixture.toggle("broken", False)
    assert same_bits(model(hidden), before)


def test_hundred_cycles_leave_every_module_and_output(unet: Any, experts: Experts) -> None:
    before, modules, state = predict(unet), modules_of(unet), unet.state_dict()
    draw = random.Random(0)
    for cycle in range(100):
        mixture = attach({"unet": unet}, experts)
        mixture.set_weights({name: draw.uniform(-1, 2) for name in experts})
        mixture.toggle(draw.choice(mixture.names), False)
        if cycle % 10 == 0:
            assert not torch.equal(predict(unet), before)
            for name in mixture.names:
                mixture.toggle(name, False)
            assert same_bits(predict(unet), before)
        mixture.detach()
        assert modules_of(unet) == modules
        if cycle % 10 == 0:
            assert same_bits(predict(unet), before)
    assert same_bits(predict(unet), before)
    after = unet.state_dict()
    assert list(after) == list(state)
    assert all(same_bits(after[key], state[key]) for key in state)


def test_the_same_state_gives_the_same_bits(unet: Any, experts: Experts) -> None:
    with attach({"unet": unet}, experts) as mixture:
        mixture.set_weights({"ada": 0.5, "ink": 0.7})
        first = predict(unet)
        mixture.set_weights({"sea": 2.0})
        mixture.toggle("ada", False)
        mixture.toggle("ada", True)
        mixture.set_weights({"ada": 0.5, "ink": 0.7})
        assert same_bits(predict(unet), first)
    with attach({"unet": unet}, experts) as mixture:
        mixture.set_weights({"ada": 0.5, "ink": 0.7})
        assert same_bits(predict(unet), first)


def test_context_manager_detaches_after_an_error(unet: Any, experts: Experts) -> None:
    modules = modules_of(unet)
    with pytest.raises(KeyError), attach({"unet": unet}, experts):
        raise KeyError
    assert modules_of(unet) == modules


def test_detach_again_is_harmless(unet: Any, experts: Experts) -> None:
    first = attach({"unet": unet}, experts)
    first.detach()
    second = attach({"unet": unet}, experts)
    inside = modules_of(unet)
    first.detach()
    assert modules_of(unet) == inside
    second.detach()


def test_a_module_with_two_names_is_replaced_under_both() -> None:
    model = nn.ModuleDict({"one": nn.Linear(3, 3)})
    model["two"] = model["one"]
    factors = Factors(torch.ones(1, 3), torch.ones(3, 1), 1.0)
    mixture = attach({"part": model}, {"ada": {"part.one": factors}})
    assert model["one"] is model["two"] is mixture.sites["part.one"]
    mixture.detach()
    assert type(model["one"]) is nn.Linear and model["one"] is model["two"]


def test_sites_look_like_their_bases(unet: Any, experts: Experts) -> None:
    mixture = attach({"unet": unet}, experts)
    for name, site in mixture.sites.items():
        assert site is unet.get_submodule(name.removeprefix("unet."))
        assert site.weight is site.base.weight
        assert site.bias is site.base.bias
        assert not hasattr(site, "base_layer")
        assert site.training == site.base.training
    assert unet.dtype == torch.float32
    # Factors and weights belong to the mixture and not to the model's own state.
    assert not any("routing" in key or key.split(".")[-1] == "down" for key in unet.state_dict())


def test_a_site_holds_only_the_experts_that_change_it(unet: Any, experts: Experts) -> None:
    mixture = attach({"unet": unet}, experts)
    for name, site in mixture.sites.items():
        ranks = [experts[e][name].down.shape[0] if name in experts[e] else 0 for e in experts]
        assert site.owner.bincount(minlength=3).tolist() == ranks
        assert site.down.shape[0] == site.up.shape[1] == sum(ranks)


def test_deepcopy_is_independent(unet: Any, experts: Experts) -> None:
    before = predict(unet)
    mixture = attach({"unet": unet}, experts)
    mixture.set_weights({"ada": 0.5, "sea": 1.0})
    mixed = predict(unet)
    twin = copy.deepcopy(mixture)
    assert same_bits(predict(twin.models["unet"]), mixed)
    twin.set_weights({"ink": 1.0})
    assert not torch.equal(predict(twin.models["unet"]), mixed)
    assert same_bits(predict(unet), mixed)
    twin.detach()
    assert same_bits(predict(twin.models["unet"]), before)
    assert same_bits(predict(unet), mixed)
    assert same_bits(predict(copy.deepcopy(unet)), mixed)


class Stubborn(nn.Module):
    """Refuses the second replacement among its children."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "two" and isinstance(value, Site):
            raise MemoryError
        super().__setattr__(name, value)


@pytest.mark.parametrize("when", ["building", "replacing"])
def test_failure_half_way_leaves_nothing_behind(when: str) -> None:
    model = Stubborn() if when == "replacing" else nn.ModuleDict(Stubborn().named_children())
    modules = modules_of(model)
    good = Factors(torch.ones(1, 3), torch.ones(3, 1), 1.0)
    last: Any = good
    if when == "building":
        last = type("Unreadable", (), {"down": good.down, "up": good.up})()
    with pytest.raises((MemoryError, AttributeError)):
        attach({"part": model}, {"ada": {"part.one": good, "part.two": last}})
    assert modules_of(model) == modules
    attach({"part": model}, {"ada": {"part.one": good}}).detach()
    assert modules_of(model) == modules


def test_experts_are_no_parameters(unet: Any, experts: Experts) -> None:
    """So an optimiser over the model's parameters cannot touch them."""
    before = {id(parameter) for parameter in unet.parameters()}
    mixture = attach({"unet": unet}, experts)
    assert {id(parameter) for parameter in unet.parameters()} == before
    for site in mixture.sites.values():
        assert not site.down.requires_grad and not site.up.requires_grad
