"""Learned gates leave their host as it was, and do the same however it is run."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from gated_hosts import HOSTS, Host, closeness, experts_at, gated, gates_for, make_host, output
from tiny_models import same_bits
from torch import Tensor, nn

from composer.mixture import GRANULARITIES, GateSettings, Mixture, attach

Modules = list[tuple[str, int, bool]]


def modules_of(model: nn.Module) -> Modules:
    return [(n, id(m), m.training) for n, m in model.named_modules(remove_duplicate=False)]


@pytest.mark.parametrize("kind", HOSTS)
def test_many_cycles_leave_every_module_and_output(kind: str) -> None:
    host = make_host(kind)
    host.model.train()
    norms = [m for m in host.model.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)]
    norms[len(norms) // 2].eval()  # a mode of its own, that nobody may change
    before, modules = output(host), modules_of(host.model)
    state = {key: tensor.clone() for key, tensor in host.model.state_dict().items()}
    experts = experts_at(host)
    draw = random.Random(0)
    gates: dict[str, Any] = {}
    for cycle in range(100 if kind in ("sd15", "clip") else 12):
        granularity: Any = GRANULARITIES[cycle % 4]
        mixture = attach({host.part: host.model}, experts, granularity=granularity)
        if granularity not in gates:
            settings = GateSettings(time=kind != "clip")
            gates[granularity] = gates_for(mixture, host.run, settings)
        mixture.set_gates(gates[granularity])
        mixture.toggle(draw.choice(["ada", "ink"]), False)
        mixture.toggle("ada", False, depth=(0.0, draw.uniform(0.1, 1.0)))
        mixture.pin(draw.choice(list(mixture.units)), {"sea": draw.uniform(-1, 2)})
        if cycle % 20 < 4:
            assert not torch.equal(output(host), before)
        mixture.detach()
        assert modules_of(host.model) == modules
        if cycle % 20 < 4:
            assert same_bits(output(host), before)
    assert same_bits(output(host), before)
    after = host.model.state_dict()
    assert list(after) == list(state)
    assert all(same_bits(after[key], state[key]) for key in state)


class Stop(Exception):
    pass


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_failure_at_any_replacement_leaves_nothing(
    granularity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one of them fails once: of sites, of units, and of the time embedding."""
    host = make_host("sd15")
    inside = "unet.mid_block.attentions.0."
    sites = [site for site in host.sites() if site.startswith(inside)]
    experts = experts_at(host, [*sites, "unet.conv_in", "unet.time_embedding.linear_1"])
    before, modules = output(host), modules_of(host.model)
    genuine = nn.Module.__setattr__
    failed = 0
    while True:
        left = failed

        def fails(module: nn.Module, name: str, value: Any) -> None:
            nonlocal left
            if hasattr(value, "base") and module._modules.get(name) is value.base:
                left -= 1
                if left < 0:
                    raise Stop
            genuine(module, name, value)

        monkeypatch.setattr(nn.Module, "__setattr__", fails)
        try:
            mixture = attach({"unet": host.model}, experts, granularity=granularity)
        except Stop:
            failed += 1
            monkeypatch.undo()
            assert modules_of(host.model) == modules
            continue
        break
    monkeypatch.undo()
    mixture.detach()
    assert failed > len(sites) + 3
    assert modules_of(host.model) == modules
    assert same_bits(output(host), before)


def gradients(host: Host, mixture: Mixture) -> tuple[Tensor, dict[str, Tensor]]:
    for gate in mixture.gates.values():
        gate.zero_grad(set_to_none=True)
    result = host.run()
    result.square().mean().backward()
    return result.detach(), {
        f"{unit}.{name}": parameter.grad
        for unit, gate in mixture.gates.items()
        for name, parameter in gate.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_checkpointing_and_training_mode_change_nothing(kind: str, granularity: Any) -> None:
    settings = GateSettings(bias=True, time=kind != "clip")
    host, mixture = gated(kind, granularity, settings)
    host.model.requires_grad_(False)
    for gate in mixture.gates.values():
        gate.requires_grad_(True)
    expected, plain = gradients(host, mixture)
    assert set(plain) == {
        f"{unit}.{name}"
        for unit, gate in mixture.gates.items()
        for name, _ in gate.named_parameters()
    }
    assert all(gradient.isfinite().all() for gradient in plain.values())
    moved = [name for name, gradient in plain.items() if gradient.abs().max() > 0]
    assert len(moved) == len(plain)
    if kind == "clip":
        host.model.gradient_checkpointing_enable()
    else:
        host.model.enable_gradient_checkpointing()
    host.model.train()
    again, checkpointed = gradients(host, mixture)
    assert closeness(again, expected) < 1e-5
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-3, atol=1e-7)


def test_checkpointing_really_runs_twice() -> None:
    """Otherwise the test above would show nothing."""
    host, mixture = gated("sd15", "block")
    host.model.enable_gradient_checkpointing()
    host.model.train()
    runs: list[int] = []
    site = mixture.sites["unet.down_blocks.0.resnets.0.conv1"]
    site.register_forward_hook(lambda *_: runs.append(1))
    gradients(host, mixture)
    assert len(runs) == 2


@pytest.mark.parametrize("look", ["hidden", "experts"])
def test_gradients_touch_gates_alone(look: Any) -> None:
    host, mixture = gated("sd15", "block", GateSettings(input=look, bias=True))
    own = {id(p) for gate in mixture.gates.values() for p in gate.parameters()}
    host.model.requires_grad_(False)
    for gate in mixture.gates.values():
        gate.requires_grad_(True)
    trained = {id(p) for p in host.model.parameters() if p.requires_grad}
    state = {name: (site.down.clone(), site.up.clone()) for name, site in mixture.sites.items()}
    gradients(host, mixture)
    assert trained == own
    for parameter in host.model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in own)
    before = output(host)
    parameters = [p for p in host.model.parameters() if p.requires_grad]
    torch.optim.SGD(parameters, lr=1.0).step()
    assert not torch.equal(output(host), before)
    for name, site in mixture.sites.items():
        assert not site.down.requires_grad and not site.up.requires_grad
        assert same_bits(site.down, state[name][0]) and same_bits(site.up, state[name][1])


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_rows_of_a_batch_do_not_hear_each_other(kind: str, granularity: Any) -> None:
    """As with classifier-free guidance: two prompts (and here two timesteps) in one call."""
    host, mixture = gated(kind, granularity, GateSettings(time=kind != "clip"))
    both = output(host)
    said = {name: routing.weights for name, routing in mixture.routings.items()}
    for row in range(2):
        alone = output(host.rows(slice(row, row + 1)))
        assert closeness(alone, both[row : row + 1]) < 1e-5
    assert any(not torch.allclose(weights[0], weights[1]) for weights in said.values())


def test_one_timestep_for_the_whole_batch() -> None:
    host, _ = gated("sd15", "block", GateSettings(time=True))
    for_each = Host(
        host.kind, host.model, host.part, {**host.inputs, "timestep": torch.tensor([9, 9])}
    )
    for_all = Host(host.kind, host.model, host.part, {**host.inputs, "timestep": 9})
    assert same_bits(output(for_all), output(for_each))
    assert not torch.equal(output(host), output(for_all))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("when", ["before", "after"])
def test_gates_stay_float32_on_half_hosts(dtype: torch.dtype, when: str) -> None:
    host, mixture = gated("sd15", "block", GateSettings(time=True, bias=True))
    expected = output(host)
    said = {name: routing.weights for name, routing in mixture.routings.items()}
    gates = {name: copy.deepcopy(gate) for name, gate in mixture.gates.items()}
    if when == "before":
        mixture.detach()
    host.model.to(dtype)
    if when == "before":
        mixture = attach({"unet": host.model}, experts_at(host), granularity="block")
        mixture.set_gates(gates)
    half = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in host.inputs.items()
    }
    found = output(Host(host.kind, host.model, host.part, half))
    assert found.dtype == dtype
    assert closeness(found.float(), expected) < 0.1
    for name, gate in mixture.gates.items():
        assert all(parameter.dtype == torch.float32 for parameter in gate.parameters())
        assert gate.present.dtype == torch.bool
        weights = mixture.routings[name].weights
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights, said[name], rtol=0.1, atol=0.05)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_copy_is_independent(granularity: Any) -> None:
    host, mixture = gated("sd15", granularity, GateSettings(time=True))
    before = output(make_host("sd15"))
    expected = output(host)
    host.run()  # whose gradient is still there when the copy is made
    twin = copy.deepcopy(mixture)
    model = twin.models["unet"]
    assert same_bits(output(host, model), expected)
    for name, gate in twin.gates.items():
        assert gate is twin.units[name].module.gate is not mixture.gates[name]  # pyright: ignore
        gate.e.data.add_(1.0)
    changed = output(host, model)
    assert not torch.equal(changed, expected)
    twin.toggle("ada", False)
    assert not torch.equal(output(host, model), changed)
    twin.pin(next(iter(twin.units)), {"ink": 2.0})
    assert same_bits(output(host), expected)
    twin.detach()
    assert same_bits(output(host, model), before)
    assert same_bits(output(host), expected)


def test_a_copy_of_a_mixture_that_is_off_is_off() -> None:
    host, mixture = gated("sd15")
    for name in mixture.names:
        mixture.toggle(name, False)
    twin = copy.deepcopy(mixture)
    assert same_bits(output(host, twin.models["unet"]), output(make_host("sd15")))
