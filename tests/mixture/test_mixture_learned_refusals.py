"""What learned gates refuse, naming the thing and leaving everything as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gated_hosts import experts_at, gated, gates_for, make_host, output
from tiny_models import same_bits
from torch import nn

from composer.errors import ComposerError
from composer.mixture import GateSettings, LearnedGate, Seen, attach

UNIT = "unet.mid_block.attentions.0"
EVERYBODY = torch.ones(3, dtype=torch.bool)


def test_unknown_granularity() -> None:
    host = make_host("sd15")
    before = output(host)
    with pytest.raises(ComposerError, match="'head': choose one of network, block, layer, matrix"):
        attach({"unet": host.model}, experts_at(host), granularity="head")  # pyright: ignore
    assert same_bits(output(host), before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"input": "image"}, "input 'image' is unknown: choose one of hidden, placed, experts"),
        ({"reduce": "max"}, "reduce 'max' is unknown: choose one of mean, flatten"),
        ({"activation": "relu"}, "activation 'relu' is unknown: choose one of softmax, free"),
        ({"time": "no"}, "time is 'no': give true or false"),
        ({"bias": 1}, "bias is 1: give true or false"),
    ],
)
def test_bad_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ComposerError, match=words):
        GateSettings(**settings)


def test_settings_are_read_back() -> None:
    settings = GateSettings(reduce="flatten", activation="free", time=True, bias=True)
    assert GateSettings.from_json(settings.to_json()) == settings
    with pytest.raises(ComposerError, match="Unknown gate settings colour, warmth: take"):
        GateSettings.from_json(settings.to_json() | {"warmth": 1, "colour": 2})


def test_gates_that_do_not_fit() -> None:
    host, mixture = gated("sd15")
    before, gates = output(host), mixture.gates
    good = LearnedGate(GateSettings(), 64, [True] * 3)
    for unit, gate, words in (
        ("unet.nowhere", good, 'no unit "unet.nowhere"'),
        (UNIT, LearnedGate(GateSettings(), 64, [True] * 2), f"{UNIT} was made for 2 experts"),
    ):
        with pytest.raises(ComposerError, match=words):
            mixture.set_gates({"unet.mid_block.resnets.0": good, unit: gate})
        assert mixture.gates == gates
        assert same_bits(output(host), before)


def test_gates_that_see_what_is_not_there() -> None:
    unet, text = make_host("sd15"), make_host("clip")
    sites = [*unet.sites(), "unet.time_embedding.linear_1"]
    early = "unet.time_embedding"
    whole = attach({"unet": unet.model}, experts_at(unet, sites))
    outputs = LearnedGate(GateSettings(input="experts"), 32, [True] * 3)
    with pytest.raises(ComposerError, match="unet is asked before any expert has run"):
        whole.set_gates({"unet": outputs})
    timed = LearnedGate(GateSettings(time=True), 32, [True] * 3, time_width=128)
    with pytest.raises(ComposerError, match=f"{early} knows no timestep"):
        whole.set_gates({early: timed})
    whole.set_gates({"unet": timed})
    parts = attach({"text_encoder": text.model}, experts_at(text), granularity="block")
    layer = "text_encoder.encoder.layers.0"
    with pytest.raises(ComposerError, match=f"{layer} knows no timestep"):
        parts.set_gates({layer: timed})
    with pytest.raises(ComposerError, match="knows no timestep: choose a gate without time"):
        LearnedGate(GateSettings(time=True), 32, [True] * 3)


def test_a_network_without_an_entry_has_constant_weights_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    host = make_host("sd15")
    factors = next(iter(experts_at(host).values()))
    some = next(iter(factors.values()))
    fits = type(some)(torch.ones(1, 4), torch.ones(4, 1), 1.0)
    mixture = attach({"part": model}, {"ada": {"part.0": fits}})
    with pytest.raises(ComposerError, match="part has no module at which a learned gate"):
        mixture.set_gates({"part": LearnedGate(GateSettings(), 4, [True])})
    assert mixture.gates == {}


def test_pins_that_do_not_fit() -> None:
    host, mixture = gated("sd15")
    before = output(host)
    for unit, weights, words in (
        ("unet.nowhere", {"ada": 1.0}, 'no unit "unet.nowhere"'),
        (UNIT, {"bob": 1.0}, 'no expert "bob"'),
        (UNIT, {"ada": math.nan}, f'"ada" for {UNIT} is nan'),
    ):
        with pytest.raises(ComposerError, match=words):
            mixture.pin(unit, weights)
        assert same_bits(output(host), before)
    with pytest.raises(ComposerError, match='no unit "unet"'):
        mixture.depth_of("unet")


@pytest.mark.parametrize("activation", ["softmax", "free"])
def test_a_start_is_what_the_gate_gives_before_it_learns(activation: Any) -> None:
    gate = LearnedGate(GateSettings(activation=activation, bias=True), 8, [True] * 3)
    gate.e.data.zero_()
    wanted = [0.9, 0.5, -0.3]
    gate.start_at(wanted)
    said = gate(Seen(hidden=torch.randn(2, 5, 8)), EVERYBODY)[0].tolist()
    raised = [0.9, 0.5, 0.01]
    expected = {
        "free": wanted,
        "softmax": [weight / sum(raised) for weight in raised],
    }
    assert said == pytest.approx(expected[activation], abs=1e-5)
    with pytest.raises(ComposerError, match="choose a gate with bias"):
        LearnedGate(GateSettings(), 8, [True] * 3).start_at(wanted)


@pytest.mark.parametrize("activation", ["softmax", "free"])
@pytest.mark.parametrize("started", [False, True])
def test_an_absent_expert_is_left_out_and_spoils_no_number(activation: Any, started: bool) -> None:
    """Also when all are off."""
    gate = LearnedGate(GateSettings(activation=activation, bias=True), 8, [True, False, True])
    if started:
        gate.start_at([0.5, 0.0, 0.7])
    for mask in (EVERYBODY, torch.tensor([False, True, True]), ~EVERYBODY):
        gate.zero_grad()
        weights = gate(Seen(hidden=torch.randn(2, 5, 8)), mask)
        active = mask & gate.present
        assert ((weights != 0) == active).all()
        weights.square().sum().backward()
        for parameter in gate.parameters():
            assert parameter.isfinite().all()
            assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_absent_experts_in_a_model() -> None:
    """Experts with different sites: the softmax is over those who have something to say."""
    host = make_host("sd15")
    experts = experts_at(host)
    resnets = {site: f for site, f in experts["sea"].items() if "resnets" in site}
    mixture = attach({"unet": host.model}, {**experts, "sea": resnets}, granularity="block")
    assert mixture.units[UNIT].present == (True, True, False)
    mixture.set_gates(gates_for(mixture, host.run, even=True))
    output(host)
    assert mixture.routings[UNIT].weights[0].tolist() == pytest.approx([0.5, 0.5, 0.0])
    resnet = mixture.routings["unet.mid_block.resnets.0"]
    assert resnet.weights[0].tolist() == pytest.approx([1 / 3] * 3)
