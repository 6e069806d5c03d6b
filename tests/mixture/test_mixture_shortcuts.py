"""What is worked out once, or in place, is what the long way gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gated_hosts import closeness, gated, output
from tiny_models import Factors, same_bits
from torch import Tensor, nn

from composer.mixture import GateSettings, LearnedGate, Routing, Seen
from composer.mixture.sites import ExpertLinear

RANKS = (3, 1, 5)


def make_site(routing: Routing, width: int, out: int, *, left_out: int | None = None) -> Any:
    factors = [
        None if expert == left_out else Factors(torch.randn(r, width), torch.randn(out, r), 0.5)
        for expert, r in enumerate(RANKS)
    ]
    return ExpertLinear(nn.Linear(width, out), factors, routing)


def naive(site: Any, hidden: Tensor, weights: Tensor) -> Tensor:
    """The dense weights of each row, one expert after another. weights: (batch, experts)."""
    rows: list[Tensor] = []
    for row, own in zip(hidden, weights, strict=True):
        weight = site.base.weight.clone()
        for rank, expert in enumerate(site.owner.tolist()):
            weight += own[expert] * site.up[:, rank, None] * site.down[None, rank]
        rows.append(nn.functional.linear(row, weight, site.base.bias))
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (2, 3, 4, 6), (2, 0, 6)])
@pytest.mark.parametrize("derived", [False, True])
@torch.no_grad()
def test_adding_in_place_is_the_sum(shape: tuple[int, ...], derived: bool) -> None:
    torch.manual_seed(0)
    routing = Routing(3)
    site, hidden, weights = make_site(routing, 6, 7), torch.randn(shape), torch.randn(2, 3)
    routing.keep(weights)
    before = hidden.clone()
    with torch.set_grad_enabled(derived):
        found = site(hidden)
    torch.testing.assert_close(found, naive(site, hidden, weights), rtol=1e-5, atol=1e-5)
    assert torch.equal(hidden, before)


@torch.no_grad()
def test_inputs_of_other_layouts() -> None:
    torch.manual_seed(0)
    routing = Routing(3)
    site, weights = make_site(routing, 6, 7), torch.randn(2, 3)
    routing.keep(weights)
    turned = torch.randn(2, 6, 5).transpose(1, 2)
    torch.testing.assert_close(site(turned), naive(site, turned, weights), rtol=1e-5, atol=1e-5)
    sliced = torch.randn(2, 5, 12)[..., ::2]
    torch.testing.assert_close(site(sliced), naive(site, sliced, weights), rtol=1e-5, atol=1e-5)
    # one row of words for both rows of the picture: each with its own weights
    alone = torch.randn(1, 5, 6)
    both = alone.expand(2, -1, -1)
    torch.testing.assert_close(site(alone), naive(site, both, weights), rtol=1e-5, atol=1e-5)
    routing.keep(weights[0])
    single = torch.randn(6)
    expected = naive(site, single[None], weights[:1])[0]
    torch.testing.assert_close(site(single), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_long_way() -> None:
    torch.manual_seed(0)
    routing = Routing(3)
    site, hidden = make_site(routing, 6, 7), torch.randn(2, 5, 6, requires_grad=True)
    weights = torch.randn(2, 3, requires_grad=True)
    # a hook of this kind forbids that the output is written to
    site.base.register_full_backward_hook(lambda *_: None)
    routing.keep(weights)
    found = torch.autograd.grad(site(hidden).square().sum(), (hidden, weights))
    expected = torch.autograd.grad(naive(site, hidden, weights).square().sum(), (hidden, weights))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sites_of_a_unit_hear_every_change() -> None:
    """They share one answer where their ranks are alike; others do not take it for theirs."""
    torch.manual_seed(0)
    routing = Routing(3)
    sites = [make_site(routing, 6, 7), make_site(routing, 6, 4), make_site(routing, 6, 7)]
    sites.append(make_site(routing, 6, 7, left_out=1))
    hidden = torch.randn(2, 5, 6)

    def receive(weights: Tensor) -> None:
        each = weights.expand(2, 3)
        for site in sites:
            expected = naive(site, hidden, each)
            torch.testing.assert_close(site(hidden), expected, rtol=1e-5, atol=1e-5)

    assert sites[0].gate() is sites[2].gate() is sites[1].gate()
    for weights in (torch.randn(3), torch.randn(3), torch.randn(2, 3), torch.randn(2, 3)):
        routing.keep(weights)  # the first two in place
        receive(weights)
    twin = copy.deepcopy(sites[0])
    twin.routing.keep(torch.zeros(2, 3))
    torch.testing.assert_close(twin(hidden), twin.base(hidden))
    receive(routing.weights)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("activation", ["softmax", "free"])
def test_a_gate_hears_every_change_of_the_mask(activation: Any, mode: Any) -> None:
    torch.manual_seed(0)
    settings = GateSettings(activation=activation, bias=True)
    present = [True, True, False, True]
    gate = LearnedGate(settings, 6, present)
    assert gate.b is not None
    gate.b.data = torch.randn(4)
    with mode():
        seen, mask = Seen(hidden=torch.randn(2, 5, 6)), torch.ones(4, dtype=torch.bool)
        for allowed in ([1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]):
            mask.copy_(torch.tensor(allowed, dtype=torch.bool))
            fresh = copy.deepcopy(gate)
            weights = gate(seen, mask)
            assert same_bits(weights.detach(), fresh(seen, mask.clone()).detach())
            here = [bool(a) and p for a, p in zip(allowed, present, strict=True)]
            assert all(weights[:, i].eq(0).all() for i in range(4) if not here[i])
            if sum(here) == 1:
                torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))


def test_with_and_without_gradients_a_model_says_the_same() -> None:
    host, mixture = gated("sd15", "block", GateSettings(time=True, bias=True, activation="free"))
    assert closeness(host.run().detach(), output(host)) < 1e-5
    mixture.toggle("ink", False)
    assert closeness(host.run().detach(), output(host)) < 1e-5
