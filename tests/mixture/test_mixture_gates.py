"""The contract between gates, routing and sites, with a learned gate that keeps it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import Experts, predict, same_bits, unet_inputs
from torch import Tensor, nn

from composer.mixture import ConstantGate, Gate, Mixture, Seen, attach


class MeanGate(Gate):
    """A gate of another's: softmax over the experts of the mean of what the unit sees."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = experts
        self.project = nn.Linear(width, experts)

    def forward(self, seen: Seen | None, mask: Tensor) -> Tensor:
        assert seen is not None
        logits = self.project(seen.hidden.float().mean(dim=1))
        weights = logits.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        return weights.masked_fill(~mask, 0.0)


def test_constant_gate() -> None:
    gate: Gate = ConstantGate([0.8, -1.0, 0.25])
    mask = torch.tensor([True, True, False])
    assert gate(None, mask).tolist() == pytest.approx([0.8, -1.0, 0.0])
    assert gate(None, mask).dtype == torch.float32
    rows = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert ConstantGate(rows)(None, mask).tolist() == [[1.0, 2.0, 0.0], [4.0, 5.0, 0.0]]


def test_rows_are_weighed_whatever_else_holds(unet: Any, experts: Experts) -> None:
    """Each row of a batch as if it were alone with these weights; after it, all as before."""
    mixture, _ = gated(unet, experts)
    before = predict(unet)
    mixture.pin(UNIT, {"ada": 3.0})
    mixture.toggle("ink", False)
    kept = predict(unet)
    rows = torch.tensor([[1.0, 0.0], [0.5, -1.0]])
    with mixture.weighing_rows():
        mixture.weigh_rows(rows)
        found = predict(unet)
        assert mixture.routings[UNIT].weights.tolist() == rows.tolist()
        mixture.weigh_rows(torch.zeros(2, 2))
        bare = predict(unet)
    assert same_bits(predict(unet), kept)
    mixture.pin(UNIT, None)
    mixture.toggle("ink", True)
    assert same_bits(predict(unet), before)
    for row, (ada, ink) in enumerate(rows.tolist()):
        mixture.set_weights({"ada": ada, "ink": ink})
        torch.testing.assert_close(found[row], predict(unet)[row], rtol=1e-4, atol=1e-5)
    mixture.set_weights({})
    assert same_bits(bare, predict(unet))


UNIT = "unet.down_blocks.0.attentions.0"


def gated(unet: Any, experts: Experts) -> tuple[Mixture, MeanGate]:
    """The U-Net with such a gate in its first transformer."""
    experts = {
        name: {site: f for site, f in sites.items() if site.startswith(f"{UNIT}.transformer")}
        for name, sites in experts.items()
        if name != "sea"
    }
    mixture = attach({"unet": unet}, experts, granularity="block")
    gate = MeanGate(32, len(mixture.names))
    mixture.set_gates({UNIT: gate})
    assert mixture.gates == {UNIT: gate} and mixture.learned_gates == {}
    return mixture, gate


@pytest.mark.parametrize("training", [False, True])
def test_gradient_reaches_a_learned_gate_with_and_without_checkpointing(
    unet: Any, experts: Experts, training: bool
) -> None:
    """The same output and the same gradients when the forward pass runs again in backward."""
    found: list[tuple[Tensor, Tensor]] = []
    for checkpointed in (False, True):
        host = copy.deepcopy(unet).train(training)
        _, gate = gated(host, experts)
        host.requires_grad_(False)
        gate.requires_grad_(True)
        if checkpointed:
            host.enable_gradient_checkpointing()
        output = host(**unet_inputs()).sample
        output.square().mean().backward()
        assert gate.project.weight.grad is not None
        found.append((output.detach(), gate.project.weight.grad))
    (output, gradient), (again, same_gradient) = found
    assert gradient.abs().max() > 0
    torch.testing.assert_close(again, output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(same_gradient, gradient, rtol=1e-4, atol=1e-7)


def test_masking_redistributes_and_all_masked_is_the_base(unet: Any, experts: Experts) -> None:
    before = predict(unet)
    mixture, _ = gated(unet, experts)
    routing = mixture.routings[UNIT]
    assert not torch.equal(predict(unet), before)
    mixture.toggle("ada", False)
    predict(unet)
    assert routing.weights.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    mixture.toggle("ink", False)
    assert same_bits(predict(unet), before)


@pytest.mark.parametrize("training", [False, True])
def test_constant_gates_under_checkpointing(unet: Any, experts: Experts, training: bool) -> None:
    mixture = attach({"unet": unet}, experts)
    mixture.set_weights({"ada": 0.7, "sea": 0.3})
    unet.train(training)
    gradients: list[Tensor] = []
    for checkpointed in (False, True):
        if checkpointed:
            unet.enable_gradient_checkpointing()
        inputs = unet_inputs()
        inputs["sample"].requires_grad_(True)
        unet(**inputs).sample.square().mean().backward()
        assert inputs["sample"].grad is not None
        gradients.append(inputs["sample"].grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)
