"""MixLoRA on language models: what transformers does with it, what is trained, what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_ffns import FAMILIES, attached, close, config, gradients, make, scalar, words
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.mixlora import LoraSettings, MixLora, attach_mixlora

ATTENTION = LoraSettings(rank=2, alpha=4.0, dropout=0.0)
CAUSAL = [name for name in FAMILIES if name not in ("t5", "t5-gated", "clip", "unet")]


def generate(model: Any, ids: Tensor, **settings: Any) -> Tensor:
    told = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, **settings}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **told)


@pytest.mark.parametrize("family", CAUSAL)
def test_generating_with_a_cache_is_as_without(family: str) -> None:
    model = make(family)
    attached(model, config(attention=ATTENTION))
    cached = generate(model, words(2))
    assert torch.equal(cached, generate(model, words(2), use_cache=False))


def test_t5_generates() -> None:
    model = make("t5-gated")
    attached(model, config(attention=ATTENTION))
    assert torch.equal(generate(model, words(2)), generate(model, words(2), use_cache=False))


def test_beams_belong_to_the_adapter_of_their_row() -> None:
    model = make("llama")
    mixlora = attached(model, config(), config(rank=2))
    ids = words(2)
    mixlora.assign(["a0", "a1"])
    together = generate(model, ids, num_beams=3, num_return_sequences=3)
    for row, name in enumerate(mixlora.names):
        mixlora.assign(name)
        alone = generate(model, ids[row : row + 1], num_beams=3, num_return_sequences=3)
        assert torch.equal(together[3 * row : 3 * row + 3], alone)


@pytest.mark.parametrize("router", ["top-k", "dynamic", "switch"])
def test_padding_changes_no_other_token(router: str) -> None:
    model: Any = make("llama")
    attached(model, config(router, attention=ATTENTION))
    ids = words(2)
    bare = model(input_ids=ids).logits
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 3, dtype=torch.long)], dim=1)
    assert close(model(input_ids=padded, attention_mask=mask).logits[:, :6], bare)


@pytest.mark.parametrize("family", ["llama", "phi3", "t5-gated"])
def test_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    model: Any = make(family)
    mixlora = attached(model, config(dropout=0.3, attention=replace(ATTENTION, dropout=0.3)))
    model.train()
    ids = words(2)
    masks: Any = torch.ones_like(ids)
    told: dict[str, Any] = {"input_ids": ids, "labels": ids}
    if family.startswith("t5"):
        masks = {"encoder": masks, "decoder": masks}
    found: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)  # one dropout for both
        with mixlora.record_routing(masks) as tape:
            loss = model(**told, use_cache=False).loss
        assert len(tape) == len(mixlora.hosts)
        found.append(gradients(mixlora, loss + 100.0 * mixlora.router_loss(tape, "a0")))
        assert len(tape) == len(mixlora.hosts)  # not recorded again in the backward pass
    assert all(close(found[1][path], gradient) for path, gradient in found[0].items())


def test_padding_does_not_change_the_router_loss() -> None:
    model: Any = make("llama")
    mixlora = attached(model, config())
    ids = words(2)
    padded = torch.cat([ids, torch.full((2, 3), 5)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 3, dtype=torch.long)], dim=1)
    with mixlora.record_routing() as tape:
        model(input_ids=ids)
    with mixlora.record_routing(mask) as masked:
        model(input_ids=padded, attention_mask=mask)
    one, other = (mixlora.router_loss(some, "a0") for some in (tape, masked))
    assert float(one.detach()) > 0
    assert torch.allclose(one, other)
    shares = mixlora.loads(masked, "a0")
    assert set(shares) == set(mixlora.hosts)
    assert all(float(share.sum()) == pytest.approx(1.0) for share in shares.values())


def test_only_an_adapters_own_parameters_are_trained() -> None:
    model: Any = make("llama")
    mixlora = attached(model, config(dora=True, attention=ATTENTION), config())
    before = {name: p.clone() for name, p in model.named_parameters()}
    mixlora.assign(["a0"])
    mine = {id(p) for _, p in mixlora.named_parameters("a0")}
    optimizer = torch.optim.AdamW(mixlora.parameter_groups("a0", lr=1e-2))
    ids = words(1)
    with mixlora.record_routing() as tape:
        loss = model(input_ids=ids, labels=ids).loss
    (loss + mixlora.router_loss(tape, "a0")).backward()
    optimizer.step()
    changed = {id(p) for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == mine


def test_lora_plus_lets_b_learn_faster() -> None:
    model = make("llama")
    mixlora = attached(model, config(dora=True, attention=ATTENTION))
    groups = {g["name"]: g for g in mixlora.parameter_groups("a0", lr=1e-3, lora_plus=16.0)}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        {"A": 1e-3, "B": 16e-3, "router": 1e-3, "magnitude": 1e-3}
    )
    every = [p for group in groups.values() for p in group["params"]]
    assert len(every) == len(list(mixlora.named_parameters("a0")))
    assert all(p.requires_grad for p in every)


@pytest.mark.parametrize("dora", [False, True])
def test_the_attention_is_as_pefts(dora: bool) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = make("phi")  # its projections have biases
    twin: Any = copy.deepcopy(model)
    lora = LoraSettings(rank=3, alpha=6.0, dropout=0.0, dora=dora)
    told = replace(config(attention=lora), target_modules=("q_proj", "dense", "fc1"))
    mixlora = attached(model, told)
    for host in mixlora.hosts.values():
        for factors in host.adapters["a0"].factors.values():  # pyright: ignore
            factors.B.data.zero_()  # only the attention changes anything
    twin = inject_adapter_in_model(
        LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "dense"], use_dora=dora), twin
    )
    with torch.no_grad():
        for path, site in mixlora.sites.items():
            factors: Any = site.adapters["a0"]
            layer = twin.get_submodule(path)
            layer.lora_A["default"].weight.copy_(factors.A[0])
            layer.lora_B["default"].weight.copy_(factors.B[0])
            if dora:
                layer.lora_magnitude_vector["default"].weight.copy_(factors.magnitude[0])
    output: Any = model(input_ids=words())
    expected: Any = twin(input_ids=words())
    assert close(output.logits, expected.logits)
    found = gradients(mixlora, scalar(output.logits))
    for path in mixlora.sites:
        layer = twin.get_submodule(path)
        wanted = torch.autograd.grad(
            scalar(expected.logits),
            [layer.lora_A["default"].weight, layer.lora_B["default"].weight],
            retain_graph=True,
        )
        assert close(found[f"{path}.A"][0], wanted[0])
        assert close(found[f"{path}.B"][0], wanted[1])


def test_a_seed_decides_the_first_weights() -> None:
    model = make("llama")
    states: list[dict[str, Tensor]] = []
    for seed in (1, 1, 2):
        with attach_mixlora(model, {"a": config(attention=ATTENTION)}, seed=seed) as mixlora:
            states.append(mixlora.state_dict("a"))
    same = [torch.equal(states[0][key], states[1][key]) for key in states[0]]
    other = [torch.equal(states[0][key], states[2][key]) for key in states[0]]
    assert all(same)
    assert not all(other)


def refused(model: nn.Module, adapters: Any, *says: str) -> None:
    modules = [(name, id(module)) for name, module in model.named_modules()]
    trainable = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ComposerError) as error:
        attach_mixlora(model, adapters)
    assert all(word in str(error.value) for word in says), str(error.value)
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert [p.requires_grad for p in model.parameters()] == trainable


def test_a_model_without_a_known_ffn() -> None:
    refused(nn.Sequential(nn.Linear(3, 3)), {"a": config()}, "Sequential", "Llama")


def test_a_module_that_only_looks_like_an_ffn() -> None:
    model: Any = make("llama")
    mlp = type(model.model.layers[0].mlp)

    class Odd(mlp):  # pyright: ignore
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * super().forward(x)

    model.model.layers[0].mlp.__class__ = Odd
    refused(model, {"a": config()}, "model.layers.0.mlp", "Odd")


def test_target_modules_that_are_not_there() -> None:
    told = replace(config(), target_modules=("up_proj", "fc1"))
    refused(make("llama"), {"a": told}, "'fc1'", '"a"', "up_proj")


def test_no_ffn_among_the_target_modules() -> None:
    told = replace(config(attention=ATTENTION), target_modules=("q_proj",))
    refused(make("llama"), {"a": told}, "q_proj", "no experts")


def test_another_activation() -> None:
    refused(make("llama"), {"a": replace(config(), act_fn="gelu_new")}, "gelu_new", "another base")
    refused(make("llama"), {"a": replace(config(), act_fn="os.system")}, "os.system")
    attach_mixlora(make("llama"), {"a": replace(config(), act_fn="silu")})


def test_adapters_on_it_already() -> None:
    model = make("llama")
    with attach_mixlora(model, {"a": config()}):
        refused(model, {"b": config()}, "already", "Detach")
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), model)
    refused(model, {"b": config()}, "PEFT")


@pytest.mark.parametrize("names", [{}, {"a.b": config()}, {"": config()}])
def test_names_that_cannot_be(names: Any) -> None:
    refused(make("llama"), names, "adapter")


def test_rows_must_be_assigned() -> None:
    model: Any = make("llama")
    mixlora = attached(model, config(), config())
    with pytest.raises(ComposerError, match="assign"):
        model(input_ids=words(3))
    with pytest.raises(ComposerError, match='"nobody"'):
        mixlora.assign(["nobody"])
    for call in (MixLora.state_dict, MixLora.named_parameters):
        with pytest.raises(ComposerError, match='"nobody"'):
            list(call(mixlora, "nobody"))
