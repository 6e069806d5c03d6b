"""Learned gates that say what a constant could: diffusers' sum, one LoRA alone, or the base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.loaders.lora_base import set_adapters_for_text_encoder
from gated_hosts import HOSTS, closeness, experts_at, gated, gates_for, make_host, output
from tiny_models import same_bits, with_peft

from composer.mixture import GRANULARITIES, GateSettings, LearnedGate, Seen, attach

ALL = {  # every usual site of a part, the U-Net's first and last convolution among them
    "unet": [
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv", "conv_shortcut", "time_emb_proj", "conv_in", "conv_out"),
    ],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}
pytestmark = pytest.mark.parametrize("granularity", GRANULARITIES)


@pytest.mark.parametrize("kind", HOSTS)
def test_an_even_gate_is_set_adapters_at_one_third(kind: str, granularity: Any) -> None:
    host = make_host(kind)
    base = output(host)
    targets = {
        name: (rank, rank + 1, ALL[host.part])
        for name, rank in (("ada", 4), ("ink", 2), ("sea", 3))
    }
    adapted, experts = with_peft(host.model, host.part, targets)
    names, thirds = list(targets), [1 / 3] * 3
    if host.part == "unet":
        adapted.set_adapters(names, thirds)
    else:
        set_adapters_for_text_encoder(names, adapted, thirds)  # pyright: ignore
    expected = output(host, adapted)
    mixture = attach({host.part: host.model}, experts, granularity=granularity)
    mixture.set_gates(gates_for(mixture, host.run, even=True))
    assert set(mixture.gates) == set(mixture.units)
    assert closeness(output(host), expected) < 1e-5
    assert closeness(base, expected) > 1e-2
    mixture.set_gates(gates_for(mixture, host.run))
    assert closeness(output(host), expected) > 1e-3


@pytest.mark.parametrize(
    ("kind", "activation"),
    [("sd15", "softmax"), ("sd2", "free"), ("sdxl", "free"), ("clip", "free")],
)
def test_the_only_one_left_is_that_lora_alone(kind: str, granularity: Any, activation: Any) -> None:
    """Whatever its gates have learnt."""
    host, mixture = gated(kind, granularity, GateSettings(activation=activation, bias=True))
    together = output(host)
    alone = make_host(kind)
    attach({alone.part: alone.model}, {"ink": experts_at(alone)["ink"]})
    expected = output(alone)
    mixture.toggle("ada", False)
    mixture.toggle("sea", False)
    assert closeness(output(host), expected) < 1e-5
    assert closeness(together, expected) > 1e-2


@pytest.mark.parametrize(
    ("kind", "look"), [(kind, "hidden") for kind in HOSTS] + [("clip", "experts")]
)
def test_everybody_off_is_the_base(kind: str, granularity: Any, look: Any) -> None:
    if granularity == "network":
        look = "hidden"  # the gate of a network sees no outputs
    before = output(make_host(kind))
    host, mixture = gated(kind, granularity, GateSettings(input=look))
    learned = output(host)
    assert not torch.equal(learned, before)
    for name in mixture.names:
        mixture.toggle(name, False)
    assert same_bits(output(host), before)
    for name in mixture.names:
        mixture.toggle(name, True)
    assert same_bits(output(host), learned)


@pytest.mark.parametrize("activation", ["softmax", "free"])
def test_masking_leaves_the_others_their_shares(granularity: Any, activation: Any) -> None:
    """MoLE, section 3.3, in each unit: m_i G_i / sum m_j G_j; and straight lines for strengths."""
    settings = GateSettings(activation=activation, bias=True)
    host, mixture = gated("sd15", granularity, settings)
    unit = next(iter(mixture.units))
    gate = mixture.learned_gates[unit]
    seen = Seen(hidden=torch.randn(2, 9, gate.width))
    full = gate(seen, torch.tensor([True, True, True]))
    part = gate(seen, torch.tensor([True, False, True]))
    left = full[:, [0, 2]]
    # one missing of two others: weights that are no shares go halfway to 1
    left = left / left.sum(1, keepdim=True) if activation == "softmax" else (left + 1) / 2
    torch.testing.assert_close(part[:, [0, 2]], left)
    assert part[:, 1].tolist() == [0.0, 0.0]
    assert (activation == "softmax") == torch.allclose(full.sum(dim=1), torch.ones(2))
    output(host)
    mixture.toggle("ink", False)
    output(host)
    assert mixture.routings[unit].weights[..., 1].abs().max() == 0
    assert isinstance(gate, LearnedGate)
