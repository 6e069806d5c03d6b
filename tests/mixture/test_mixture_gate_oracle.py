"""Learned gates against their equation, worked out by hand from what hooks see of a unit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from gated_hosts import RANKS, Host, gated, output, token_gates
from torch import Tensor
from torch.nn import functional

from composer.mixture import GateSettings, LearnedGate, Mixture

SETTINGS = [
    GateSettings(reduce=reduce, activation=activation, time=time, bias=time)
    for reduce, activation, time in itertools.product(
        ("mean", "flatten"), ("softmax", "free"), (False, True)
    )
    if time or activation != "free"  # which needs a bias to start at
]


def name_of(settings: GateSettings) -> str:
    time = "-time" if settings.time else ""
    return f"{settings.reduce}-{settings.activation}{time}"


def as_rows(value: Tensor) -> Tensor:
    """One row of the batch as (tokens, width)."""
    if value.ndim == 3:  # (channels, height, width)
        _, height, width = value.shape
        return torch.stack([value[:, y, x] for y in range(height) for x in range(width)])
    return value if value.ndim == 2 else value[None]


def weights_by_hand(gate: LearnedGate, value: Tensor, time: Tensor | None) -> Tensor:
    """g for one row: (experts,)."""
    settings, rows = gate.settings, as_rows(value)
    vector = torch.cat(list(rows)) if settings.reduce == "flatten" else sum(rows) / len(rows)
    assert isinstance(vector, Tensor)
    eps = gate.e @ (vector / vector.square().sum().sqrt())
    if gate.b is not None:
        eps = eps + gate.b
    if gate.clock is not None:
        assert time is not None
        t = (time - time.mean()) / (time.var(unbiased=False) + 1e-5).sqrt()
        eps = eps + gate.clock @ t / len(t) ** 0.5
    eps = eps / gate.tau.clamp(1, 3)
    return eps if settings.activation == "free" else eps.exp() / eps.exp().sum()


@torch.no_grad()
def run_and_watch(host: Host, mixture: Mixture) -> tuple[dict[str, Any], Tensor]:
    """Each unit's call, (inputs, settings) or, for a network, its first hidden state; the time."""
    calls: dict[str, Any] = {}
    time: list[Tensor] = []

    def look(name: str, whole: bool) -> Any:
        def hook(_: Any, inputs: Any, given: Any, result: Any) -> None:
            calls[name] = ((result,), {}) if whole else (inputs, given)

        return hook

    handles = [host.model.time_embedding.register_forward_hook(lambda *a: time.append(a[2]))]
    for name, unit in mixture.units.items():
        module: Any = unit.module
        hook = look(name, unit.plan.whole)
        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    output(host)
    for handle in handles:
        handle.remove()
    return calls, time[0]


def check(mixture: Mixture, seen: dict[str, Tensor], time: Tensor) -> None:
    """The weights that the sites read are those of the equation, and depend on the input."""
    assert set(seen) == set(mixture.gates) and seen
    for name, gate in mixture.learned_gates.items():
        found = mixture.routings[name].weights
        for row in range(2):
            expected = weights_by_hand(gate, seen[name][row], time[row])
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_from_the_hidden_state_of_a_block(settings: GateSettings) -> None:
    host, mixture = gated("sd15", "block", settings)
    calls, time = run_and_watch(host, mixture)
    with torch.no_grad():
        check(mixture, {name: inputs[0] for name, (inputs, _) in calls.items()}, time)


@pytest.mark.parametrize("granularity", ["network", "layer", "matrix"])
def test_from_the_hidden_state_of_others(granularity: str) -> None:
    settings = GateSettings(activation="free", bias=True, time=True)
    host, mixture = gated("sdxl", granularity, settings)
    calls, time = run_and_watch(host, mixture)
    with torch.no_grad():
        check(mixture, {name: inputs[0] for name, (inputs, _) in calls.items()}, time)


@pytest.mark.parametrize("granularity", ["block", "layer", "matrix"])
@pytest.mark.parametrize("reduce", ["mean", "flatten"])
def test_from_the_outputs_of_the_experts(granularity: str, reduce: Any) -> None:
    """E_i by passes of the unit on its own: expert i alone, less nobody (equations 7 to 9)."""
    settings = GateSettings(input="experts", reduce=reduce)
    host, mixture = gated("sd15", granularity, settings)
    calls, time = run_and_watch(host, mixture)
    told = {name: routing.weights for name, routing in mixture.routings.items()}

    def alone(name: str, expert: str | None) -> Tensor:
        mixture.pin(name, {} if expert is None else {expert: 1.0})
        inputs, given = calls[name]
        module: Any = mixture.units[name].module
        result = module(*inputs, **given)
        mixture.pin(name, None)
        return result[0] if isinstance(result, tuple) else result

    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        for name in mixture.units:
            base = alone(name, None)
            # (batch, experts * width, ...) of a picture, (batch, ..., experts * width) of a line
            axis = 1 if base.ndim == 4 else -1
            seen[name] = torch.cat([alone(name, e) - base for e in RANKS], dim=axis)
        for name, weights in told.items():
            mixture.routings[name].keep(weights)
        check(mixture, seen, time)


@pytest.mark.parametrize("reduce", ["mean", "tokens"])
def test_the_sites_follow_their_gate(reduce: Any) -> None:
    """Each block again on its own, with dense deltas weighed by hand at one of its sites."""
    host, mixture = gated("sd15", "block")
    if reduce == "tokens":
        mixture.set_gates(token_gates(mixture, host.run))
    name = "unet.mid_block.resnets.0"
    site = mixture.sites[f"{name}.conv1"]
    caught: list[tuple[Tensor, Tensor]] = []
    site.register_forward_hook(lambda _, inputs, result: caught.append((inputs[0], result)))
    output(host)
    (hidden, result) = caught[0]
    with torch.no_grad():
        expected = site.base(hidden)
        weights = mixture.routings[name].weights
        for expert in range(3):
            ranks = site.owner == expert
            low = functional.conv2d(hidden, site.down[ranks], padding=1)
            delta = functional.conv2d(low, site.up[:, ranks])
            for row, y, x in itertools.product(range(2), *map(range, delta.shape[2:])):
                place = (row, y * delta.shape[3] + x) if reduce == "tokens" else (row,)
                expected[row, :, y, x] += weights[place][expert] * delta[row, :, y, x]
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", ["network", "block", "layer", "matrix"])
def test_a_picture_with_gates_is_one_with_their_weights_pinned(granularity: str) -> None:
    """One row alone: what the gates gave, held by hand, gives the same output."""
    host, mixture = gated("sd2", granularity, GateSettings(time=True, activation="free", bias=True))
    one = host.rows(slice(0, 1))
    expected = output(one)
    said = {name: routing.weights[0].tolist() for name, routing in mixture.routings.items()}
    for name, weights in said.items():
        mixture.pin(name, dict(zip(mixture.names, weights, strict=True)))
    torch.testing.assert_close(output(one), expected, rtol=1e-4, atol=1e-5)
    other = next(reversed(said))
    mixture.pin(other, {"ada": 3.0})
    assert (output(one) - expected).abs().max() > 1e-3
