"""Sparse experts in the FFNs of every family, against a naive loop over tokens and experts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_ffns import (
    FAMILIES,
    ROUTERS,
    attached,
    close,
    config,
    gradients,
    make,
    naively,
    run,
    scalar,
)
from tiny_models import same_bits

from composer.mixlora import LoraSettings, attach_mixlora
from composer.mixlora.host import FfnHost


def same_as_naive(family: str, *configs: Any) -> None:
    model = make(family)
    mixlora = attached(model, *configs, size=0.15)
    model.double()  # so that what is left is not rounding
    output = run(family, model, batch=2)
    found = gradients(mixlora, scalar(output))
    naively(mixlora)
    expected = run(family, model, batch=2)
    wanted = gradients(mixlora, scalar(expected))
    assert close(output, expected)
    for path, gradient in wanted.items():
        assert gradient.abs().max() > 0, path
        assert close(found[path], gradient), path


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_as_the_naive_loop_forward_and_in_gradients(family: str) -> None:
    same_as_naive(family, config(attention=LoraSettings(rank=2, dropout=0.0)))


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("family", ["llama", "phi", "t5"])
def test_each_router_is_as_the_naive_loop(family: str, router: str) -> None:
    same_as_naive(family, config(router))


@pytest.mark.parametrize(
    ("family", "router"),
    [("llama", "top-k"), ("llama", "dynamic"), ("phi", "switch+"), ("phi3", "top-k")],
)
def test_dora_is_as_the_naive_loop(family: str, router: str) -> None:
    same_as_naive(family, config(router, dora=True))


@pytest.mark.parametrize("lora", [{"rslora": True}, {"rslora": True, "dora": True}])
def test_rslora(lora: dict[str, bool]) -> None:
    same_as_naive("llama", config(**lora))


@pytest.mark.parametrize("names", [("gate_proj",), ("down_proj",), ("up_proj", "down_proj")])
@pytest.mark.parametrize("dora", [False, True])
def test_only_some_matrices_adapted(names: tuple[str, ...], dora: bool) -> None:
    import dataclasses

    same_as_naive("llama", dataclasses.replace(config(dora=dora), target_modules=names))


@pytest.mark.parametrize(
    ("family", "router"),
    [*((family, "top-k") for family in FAMILIES), ("phi", "dynamic+"), ("llama", "switch+")],
)
def test_fresh_experts_change_nothing(family: str, router: str) -> None:
    model = make(family)
    before = run(family, model)
    attach_mixlora(model, {"new": config(router)}, seed=0)
    assert close(run(family, model), before, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_detached_the_model_is_as_before_bit_for_bit(family: str) -> None:
    model = make(family)
    before = run(family, model)
    modules = [(name, id(module)) for name, module in model.named_modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    with attached(model, config(attention=LoraSettings())):
        assert not close(run(family, model), before, 1e-3)
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert model.state_dict().keys() == weights.keys()
    assert all(same_bits(model.state_dict()[key], value) for key, value in weights.items())
    assert same_bits(run(family, model), before)


def test_equal_experts_are_one_lora() -> None:
    """All experts equal: whatever the router says, a single LoRA of the FFN, here PEFT's."""
    from peft import LoraConfig, inject_adapter_in_model

    model = make("llama")
    twin = copy.deepcopy(model)
    mixlora = attached(model, config())
    targets = ["gate_proj", "up_proj", "down_proj"]
    twin = inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=targets), twin)
    with torch.no_grad():
        for path, host in mixlora.hosts.items():
            experts = host.experts("a0")
            assert experts is not None
            for linear in targets:
                factors = experts.at(linear)
                assert factors is not None
                factors.A.copy_(factors.A[:1].expand_as(factors.A))
                factors.B.copy_(factors.B[:1].expand_as(factors.B))
                layer: Any = twin.get_submodule(f"{path}.{linear}")
                layer.lora_A["default"].weight.copy_(factors.A[0])
                layer.lora_B["default"].weight.copy_(factors.B[0])
    assert close(run("llama", model), run("llama", twin))


def test_an_expert_without_tokens_gets_no_gradient_and_does_nothing() -> None:
    model = make("llama")
    mixlora = attached(model, config("top-1"))
    host = next(iter(mixlora.hosts.values()))
    experts = host.experts("a0")
    assert experts is not None
    with mixlora.record_routing() as tape:
        loss = scalar(run("llama", model, batch=1))
    used = set(tape[0].chosen.flatten().tolist())
    idle = sorted(set(range(4)) - used)
    if not idle:
        pytest.skip("every expert was picked")
    loss.backward()
    for factors in experts.factors.values():
        assert all(bool((factors.A.grad[e] == 0).all()) for e in idle)
        with torch.no_grad():
            factors.A[idle] = torch.nan  # whoever touched it would show it
    assert torch.isfinite(run("llama", model, batch=1)).all()


def test_dropout_obeys_train_and_eval() -> None:
    model = make("llama")
    attached(model, config(dropout=0.5, attention=LoraSettings(dropout=0.5)))
    assert same_bits(run("llama", model), run("llama", model))
    model.train()
    assert not torch.equal(run("llama", model), run("llama", model))
    model.eval()
    assert same_bits(run("llama", model), run("llama", model))


def test_dropout_and_its_gradient_agree() -> None:
    """With the same random numbers, the gradient is the slope of what was computed."""
    model = make("t5-gated").train()  # with dropout of its own
    mixlora = attached(model, config(dropout=0.4))
    factors = next(iter(mixlora.hosts.values())).experts("a0").at("wi_0")  # pyright: ignore
    direction = torch.randn(factors.A.shape, generator=torch.Generator().manual_seed(2))

    def loss(step: float) -> torch.Tensor:
        torch.manual_seed(5)
        kept = factors.A.data.clone()
        factors.A.data.add_(direction, alpha=step)
        value = scalar(run("t5-gated", model).double())
        factors.A.data.copy_(kept)
        return value

    slope = (torch.autograd.grad(loss(0.0), factors.A)[0] * direction).sum()
    measured = (loss(1e-3) - loss(-1e-3)) / 2e-3
    assert slope == pytest.approx(float(measured.detach()), rel=0.02)


def test_jitter_is_of_training_alone_and_leaves_the_input_as_it_was() -> None:
    import dataclasses

    told = config()
    told = dataclasses.replace(told, router=dataclasses.replace(told.router, jitter=0.3))
    model = make("llama")
    mixlora = attached(model, told)
    host = next(iter(mixlora.hosts.values()))
    hidden = torch.randn(2, 3, 16)
    before = hidden.clone()
    still = host(hidden)
    assert same_bits(still, host(hidden))
    host.train()
    assert not torch.equal(host(hidden), still)
    assert torch.equal(hidden, before)


def test_several_adapters_in_one_batch_are_each_as_alone() -> None:
    family = "llama"
    configs = [
        config("top-k", attention=LoraSettings(rank=2, dropout=0.0)),
        config("dynamic", experts=3, rank=5),
        config("switch", dora=True, attention=LoraSettings(rank=4, dropout=0.0, dora=True)),
    ]
    model = make(family)
    bare = run(family, model, batch=5)
    mixlora = attached(model, *configs)
    whose = ["a1", None, "a0", "a2", "a1"]
    mixlora.assign(whose)
    output = run(family, model, batch=5)
    together = {name: gradients(mixlora, scalar(output), name) for name in mixlora.names[:1]}
    for name in mixlora.names:
        mixlora.assign(name)
        alone = run(family, model, batch=5)
        mine = [i for i, other in enumerate(whose) if other == name]
        assert close(output[mine], alone[mine], 1e-5)
    assert same_bits(output[1], bare[1]) or close(output[1], bare[1], 1e-6)
    mixlora.assign("a0")
    alone = run(family, model, batch=5)
    masked = torch.zeros_like(alone)
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(alone.shape, generator=generator)
    masked[2] = noise[2]
    wanted = gradients(mixlora, (alone * masked).mean(), "a0")
    assert all(close(together["a0"][path], wanted[path]) for path in wanted)


def test_base_layers_run_once_for_all_adapters() -> None:
    model = make("llama")
    mixlora = attached(model, config(), config(), config())
    mixlora.assign(["a0", "a1", "a2"])
    host = next(iter(mixlora.hosts.values()))
    shapes: list[tuple[int, ...]] = []
    for linear in ("gate_proj", "down_proj"):
        module = host.form.linear(host.base, linear)
        module.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))  # pyright: ignore
    run("llama", model)
    assert shapes == [(3, 6, 24), (3, 6, 16)]


def test_a_switch_router_in_use_is_not_the_identity() -> None:
    model = make("llama")
    mixlora = attached(model, config("switch"))
    host = next(iter(mixlora.hosts.values()))
    hidden = torch.randn(2, 3, 16)
    used = host(hidden)
    assert not close(used, hidden, 1e-2)
    host.train()
    assert close(host(hidden), used)


def test_casting_and_moving_follows() -> None:
    model = make("llama")
    mixlora = attached(model, config())
    named = dict(model.named_parameters())
    assert all(any(p is q for q in named.values()) for _, p in mixlora.named_parameters("a0"))
    whole = run("llama", model)
    model.to(torch.bfloat16)
    host = next(iter(mixlora.hosts.values()))
    experts = host.experts("a0")
    assert experts is not None
    assert experts.router.weight.dtype == torch.float32
    assert experts.at("up_proj").A.dtype == torch.bfloat16  # pyright: ignore
    half = run("llama", model)
    assert half.dtype == torch.bfloat16
    assert close(half.float(), whole, 0.3)


def test_experts_stay_exact_on_a_model_of_16_bits() -> None:
    model = make("llama").to(torch.bfloat16)
    mixlora = attached(model, config(attention=LoraSettings()))
    assert {p.dtype for _, p in mixlora.named_parameters("a0")} == {torch.float32}
    loss = scalar(run("llama", model).float())
    assert all(g.dtype == torch.float32 for g in gradients(mixlora, loss).values())


def test_a_copy_is_a_model_of_its_own() -> None:
    model = make("llama")
    attached(model, config())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert any(isinstance(module, FfnHost) for module in twin.modules())
    assert run("llama", twin).abs().sum() > 0


def test_compiled_it_is_the_same() -> None:
    model = make("llama")
    attached(model, config())
    host = next(module for module in model.modules() if isinstance(module, FfnHost))
    hidden = torch.randn(2, 5, 16)
    assert close(torch.compile(host, backend="eager")(hidden), host(hidden))
