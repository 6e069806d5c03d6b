"""Gates that let only the strongest experts speak: a router over frozen experts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from gated_hosts import Host, gated, output
from torch import Tensor

from composer.errors import ComposerError
from composer.mixture import GateSettings, LearnedGate, Mixture
from composer.mixture.router_losses import balance_loss, loads
from composer.mixture.rows import Routed
from composer.mixture.seen import Seen

WIDTH, EXPERTS = 7, 5
SETTINGS = [
    GateSettings(reduce=reduce, activation=activation, bias=True, normalise="layer", top_k=k)
    for reduce, activation, k in itertools.product(
        ("mean", "tokens"), ("softmax", "scaled", "sigmoid", "free"), (1, 2, 4)
    )
]
EVERYBODY = torch.ones(EXPERTS, dtype=torch.bool)


def name_of(settings: GateSettings) -> str:
    return f"{settings.reduce}-{settings.activation}-{settings.top_k}"


def gate_of(settings: GateSettings, *, absent: int | None = None) -> LearnedGate:
    """As if trained; always with the same parameters."""
    present = [expert != absent for expert in range(EXPERTS)]
    gate = LearnedGate(settings, WIDTH, present)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (gate.e, gate.b, gate.total):
            if parameter is not None:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return gate


def seen(rows: int = 3) -> Seen:
    return Seen(hidden=torch.randn(rows, 6, WIDTH, generator=torch.Generator().manual_seed(5)))


def by_hand(dense: Tensor, activation: str, k: int) -> Tensor:
    """The k strongest of each row of weights; shares among these add up to what all did."""
    flat = dense.reshape(-1, EXPERTS)
    found = torch.zeros_like(flat)
    for row, weights in enumerate(flat.tolist()):
        order = sorted(range(EXPERTS), key=lambda expert: -abs(weights[expert]))
        kept = sum(weights[expert] for expert in order[:k])
        for expert in order[:k]:
            share = activation in ("softmax", "scaled")
            found[row, expert] = weights[expert] * (sum(weights) / kept if share else 1.0)
    return found.reshape(dense.shape)


@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
@torch.no_grad()
def test_the_strongest_speak_and_share_what_all_would(settings: GateSettings) -> None:
    dense = gate_of(replace(settings, top_k=0))(seen(), EVERYBODY)
    sparse = gate_of(settings)(seen(), EVERYBODY)
    expected = by_hand(dense, settings.activation, settings.top_k)
    torch.testing.assert_close(sparse, expected, rtol=1e-5, atol=1e-6)
    assert ((sparse != 0).sum(-1) == settings.top_k).all()


@pytest.mark.parametrize("settings", SETTINGS[:: len(SETTINGS) // 8], ids=name_of)
@torch.no_grad()
def test_as_many_as_there_are_is_the_dense_gate_bit_for_bit(settings: GateSettings) -> None:
    dense = gate_of(replace(settings, top_k=0))(seen(), EVERYBODY)
    for k in (EXPERTS, EXPERTS + 1):
        assert torch.equal(gate_of(replace(settings, top_k=k))(seen(), EVERYBODY), dense)


@pytest.mark.parametrize("reduce", ["mean", "tokens"])
@torch.no_grad()
def test_one_share_is_one_hot(reduce: Any) -> None:
    gate = gate_of(GateSettings(reduce=reduce, top_k=1))
    weights = gate(seen(8), EVERYBODY)
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert len(weights.reshape(-1, EXPERTS).argmax(-1).unique()) > 1


@pytest.mark.parametrize("activation", ["softmax", "scaled", "sigmoid", "free"])
def test_the_gradient_reaches_the_chosen_alone(activation: Any) -> None:
    gate = gate_of(GateSettings(activation=activation, bias=True, top_k=2))
    weights = gate(seen(1), EVERYBODY)
    (weights * torch.arange(1.0, EXPERTS + 1)).sum().backward()
    chosen = weights[0] != 0
    assert gate.e.grad is not None and gate.b is not None and gate.b.grad is not None
    assert chosen.sum() == 2
    assert torch.equal(gate.e.grad.abs().sum(1) > 0, chosen)
    assert torch.equal(gate.b.grad != 0, chosen)


@pytest.mark.parametrize("activation", ["softmax", "free"])
@torch.no_grad()
def test_who_is_switched_off_lets_the_next_one_in(activation: Any) -> None:
    settings = GateSettings(activation=activation, bias=True, top_k=2)
    dense = gate_of(replace(settings, top_k=0))(seen(1), EVERYBODY)[0]
    order = dense.abs().argsort(descending=True).tolist()
    mask = EVERYBODY.clone()
    for gone in range(EXPERTS + 1):
        weights = gate_of(settings)(seen(1), mask)[0]
        assert weights.nonzero().flatten().tolist() == sorted(order[gone : gone + 2])
        if activation == "softmax" and gone < EXPERTS:
            assert float(weights.sum()) == pytest.approx(1.0)
        if gone < EXPERTS:
            mask[order[gone]] = False


@torch.no_grad()
def test_who_is_not_in_a_unit_is_never_chosen() -> None:
    for absent in range(EXPERTS):
        gate = gate_of(GateSettings(reduce="tokens", top_k=2), absent=absent)
        decided = gate.decide(seen(), EVERYBODY)
        assert torch.equal(decided.weights, gate(seen(), EVERYBODY))
        assert (decided.weights[..., absent] == 0).all()
        assert decided.chosen is not None and not (decided.chosen == absent).any()
        assert (decided.logits.softmax(-1)[..., absent] == 0).all()


def heard(host: Host, mixture: Mixture) -> tuple[list[Routed], list[tuple[str, Tensor]]]:
    routed: list[Routed] = []
    with mixture.listen(routed) as said:
        host.run()
    return routed, said


@pytest.mark.parametrize("reduce", ["mean", "tokens"])
def test_what_was_chosen_is_told_and_balanced(reduce: Any) -> None:
    host, mixture = gated("sd15", "block", GateSettings(reduce=reduce, top_k=2))
    plain = output(host)
    routed, said = heard(host, mixture)
    sparse = [name for name, gate in mixture.gates.items() if gate.sparse]
    assert [one.host for one in routed] == [name for name, _ in said] == sparse
    experts, tokens = len(mixture.names), 0
    counts, sums = torch.zeros(2, experts), torch.zeros(experts)
    for one, (_, weights) in zip(routed, said, strict=True):
        rows = one.logits.detach().reshape(-1, experts)
        for logits, picks, spoken in zip(
            rows, one.chosen.reshape(-1, 2), weights.detach().reshape(-1, experts), strict=True
        ):
            told = [int(expert) for expert in picks if expert >= 0]
            assert sorted(told) == spoken.nonzero().flatten().tolist()
            for place, expert in enumerate(told):
                counts[place, expert] += 1
            sums += logits.exp() / logits.exp().sum()
            tokens += 1
    naive = experts * sum(
        float(counts[place, e] / tokens * sums[e] / tokens)
        for place in range(2)
        for e in range(experts)
    )
    loss = balance_loss(routed)
    assert float(loss.detach()) == pytest.approx(naive, rel=1e-4)
    gates = list(mixture.gates.values())
    (gradient,) = torch.autograd.grad(loss, gates[0].e)
    assert gradient.abs().sum() > 0
    assert all(float(share.sum()) == pytest.approx(1.0) for share in loads(routed).values())
    assert torch.equal(output(host), plain)  # listening changes nothing


def test_the_loss_evens_the_loads_out() -> None:
    gate = gate_of(GateSettings(reduce="tokens", bias=True, top_k=1))
    with torch.no_grad():
        gate.b.copy_(torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0]))

    def routed() -> Routed:
        decided = gate.decide(seen(16), EVERYBODY)
        assert decided.chosen is not None
        return Routed(host="", adapter="", logits=decided.logits, chosen=decided.chosen, mask=None)

    def heaviest() -> float:
        return float(loads([routed()])[""].max())

    before = heaviest()
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        balance_loss([routed()]).backward()
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    assert heaviest() < 0.6 * before and heaviest() < 0.4


def test_dense_gates_choose_nobody() -> None:
    host, mixture = gated("sd15", "block", GateSettings(top_k=3))
    dense, same = gated("sd15", "block", GateSettings())
    assert torch.equal(output(host), output(dense))
    assert len(mixture.names) == 3 and heard(host, mixture)[0] == []
    assert heard(dense, same)[0] == []


def test_settings_are_checked_and_kept() -> None:
    settings = GateSettings(top_k=2)
    assert GateSettings.from_json(settings.to_json()) == settings
    old = settings.to_json()
    del old["top_k"]
    assert GateSettings.from_json(old).top_k == 0
    for wrong in (-1, 65):
        with pytest.raises(ComposerError, match="top_k"):
            GateSettings(top_k=wrong)
