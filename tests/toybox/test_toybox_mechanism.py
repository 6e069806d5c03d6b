"""The mechanism on the model and the LoRAs that ship, at small latents, against diffusers.

The shipped LoRAs change the U-Net alone, so each is given random factors for the text encoder too.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_base import set_adapters_for_text_encoder
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.experts import LowRank, ModuleNames, read_expert
from composer.mixture import GRANULARITIES, GateSettings, attach
from composer.mixture.build import new_gates

ROOT = Path(__file__).parents[2]
NAMES = ("zibo", "crown", "neon")
WORDS = ("q_proj", "fc1")  # what is changed in the text encoder

Experts = dict[str, dict[str, LowRank]]


@pytest.fixture(scope="module")
def model() -> Model:
    """In float64: in float32 the networks' own rounding is as large as a small fault.

    Weights are float32 all the same, and a third of them is 3e-8 away from a third.
    """
    loaded = load_model(ROOT / "assets" / "toybox")
    for network in loaded.models.values():
        network.double()
    return loaded


@pytest.fixture(scope="module")
def oracle(model: Model) -> tuple[Any, Any, Experts]:
    """diffusers' U-Net with the shipped files, PEFT's text encoder, and both as experts."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(model.path, safety_checker=None)
    modules = ModuleNames.of(model.models, model=model.name)
    experts: Experts = {}
    for seed, name in enumerate(NAMES):
        path = ROOT / "loras" / f"{name}.safetensors"
        read = read_expert(path, modules)
        assert read.unmatched == () and all(site.startswith("unet.") for site in read.sites)
        experts[name] = dict(read.sites)
        pipeline.load_lora_weights(str(path), adapter_name=name)
        torch.manual_seed(seed)
        config = LoraConfig(r=seed + 2, target_modules=list(WORDS), init_lora_weights=False)
        pipeline.text_encoder.add_adapter(config, adapter_name=name)
    for site, layer in pipeline.text_encoder.named_modules():
        for name in NAMES if isinstance(layer, LoraLayer) else ():
            down, up = (each[name].weight.detach() for each in (layer.lora_A, layer.lora_B))
            factors = LowRank(down=down, up=up, scale=layer.scaling[name])
            experts[name][f"text_encoder.{site}"] = factors
    layers = pipeline.text_encoder.config.num_hidden_layers
    for sites in experts.values():
        assert sites.keys() == experts[NAMES[0]].keys()
        assert sum(site.startswith("text_encoder.") for site in sites) == layers * len(WORDS)
    assert len({next(iter(sites.values())).down.shape[0] for sites in experts.values()}) > 1
    return pipeline.unet.double().eval(), pipeline.text_encoder.double().eval(), experts


@pytest.fixture
def experts(oracle: tuple[Any, Any, Experts]) -> Experts:
    return oracle[2]


@torch.no_grad()
def outputs(unet: Any, text_encoder: Any) -> tuple[Tensor, Tensor]:
    """What both say to one small row each."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(3, 19)[None]
    latents = torch.randn(1, unet.config.in_channels, 8, 8, generator=generator)
    text = torch.randn(1, 6, unet.config.cross_attention_dim, generator=generator)
    seen = unet(latents.to(unet.dtype), 400, text.to(unet.dtype)).sample
    return seen, text_encoder(ids).last_hidden_state


def of(model: Model) -> tuple[Tensor, Tensor]:
    return outputs(model.unet, model.models["text_encoder"])


def same_bits(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    """Equal to the last bit, the sign of zeros included."""
    return all(
        one.dtype == other.dtype and torch.equal(*(t.view(torch.uint8) for t in (one, other)))
        for one, other in zip(some, others, strict=True)
    )


def furthest(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> float:
    pairs = zip(some, others, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def told(oracle: tuple[Any, Any, Experts], weights: dict[str, float]) -> tuple[Tensor, Tensor]:
    """diffusers' own answer."""
    unet, text_encoder, _ = oracle
    unet.set_adapters(list(weights), list(weights.values()))
    set_adapters_for_text_encoder(list(weights), text_encoder, list(weights.values()))
    return outputs(unet, text_encoder)


def test_nobody_there_or_nobody_speaking_is_the_base(model: Model, experts: Experts) -> None:
    base = of(model)
    with attach(model.models, {}):
        assert same_bits(of(model), base)
    with attach(model.models, experts, granularity="block") as mixture:
        assert furthest(of(model), base) > 0.1
        for name in NAMES:
            mixture.toggle(name, False)
        assert same_bits(of(model), base)
        for name in NAMES:
            mixture.toggle(name, True)
        mixture.set_weights({})
        assert same_bits(of(model), base)


def test_equal_weights_and_one_alone_as_diffusers_has_them(
    model: Model, oracle: tuple[Any, Any, Experts]
) -> None:
    base, experts = of(model), oracle[2]
    with attach(model.models, experts) as mixture:
        even = dict.fromkeys(NAMES, 1 / len(NAMES))
        mixture.set_weights(even)
        wanted = told(oracle, even)
        assert furthest(of(model), wanted) < 1e-7
        assert furthest(base, wanted) > 0.1
        one_hot: dict[str, tuple[Tensor, Tensor]] = {}
        for name in NAMES:
            mixture.set_weights({name: 1.0})
            one_hot[name] = of(model)
            assert furthest(one_hot[name], told(oracle, {name: 1.0})) < 1e-7
    for name in NAMES:
        with attach(model.models, {name: experts[name]}):
            assert furthest(of(model), one_hot[name]) < 1e-7
            assert all(furthest(of(model), one_hot[n]) > 0.1 for n in NAMES if n != name)


def test_who_is_switched_off_leaves_its_share_of_the_softmax_to_the_others(
    model: Model, experts: Experts
) -> None:
    base = of(model)
    with attach(model.models, experts, granularity="block") as mixture:
        settings = dict.fromkeys(model.models, GateSettings())
        gates = new_gates(mixture, settings, lambda: of(model), seed=0)
        assert gates.keys() == mixture.units.keys()
        with torch.no_grad():
            for gate in gates.values():
                gate.e.mul_(200)  # each of its rows has the length 2
        mixture.set_gates(gates)
        with torch.no_grad(), mixture.record_weights() as before:
            of(model)
        mixture.toggle("crown", False)
        with torch.no_grad(), mixture.record_weights() as after:
            of(model)
        assert [unit for unit, _ in after] == [unit for unit, _ in before]
        assert len(after) == len(mixture.units)
        silent, others = NAMES.index("crown"), [0, 2]
        # the first units of each part see what they saw before
        first = {unit.partition(".")[0]: unit for unit in reversed(mixture.units)}.values()
        for (unit, then), (_, now) in zip(before, after, strict=True):
            assert float((then - 1 / 3).abs().max()) > 0.01
            assert bool((now[:, silent] == 0).all()) and bool((now[:, others] > 0).all())
            torch.testing.assert_close(now.sum(-1), torch.ones(1))
            if unit in first:
                shared = then[:, others] / then[:, others].sum(-1, keepdim=True)
                torch.testing.assert_close(now[:, others], shared)
        for name in NAMES:
            mixture.toggle(name, False)
        assert same_bits(of(model), base)


def test_a_hundred_cycles_leave_every_module_every_weight_and_every_answer(
    model: Model, experts: Experts
) -> None:
    def modules() -> list[tuple[str, Any, bool]]:
        return [
            (f"{part}.{name}", module, module.training)
            for part, root in model.models.items()
            for name, module in root.named_modules(remove_duplicate=False)
        ]

    def state() -> dict[str, Tensor]:
        return {f"{p}.{n}": t for p, m in model.models.items() for n, t in m.state_dict().items()}

    base, before, draw = of(model), modules(), random.Random(0)
    weights = {name: tensor.clone() for name, tensor in state().items()}
    for cycle in range(100):
        # all that the LoRAs change now and then, and mostly some of it, which is sooner done
        count = len if cycle % 20 == 0 else lambda _: 12
        some = {
            name: {site: sites[site] for site in draw.sample(sorted(sites), count(sites))}
            for name, sites in experts.items()
        }
        mixture = attach(model.models, some, granularity=GRANULARITIES[cycle % 4])
        mixture.set_weights({name: draw.uniform(0.5, 2) for name in NAMES})
        mixture.toggle(draw.choice(NAMES), False)
        if cycle % 10 == 0:
            assert furthest(of(model), base) > 1e-2
        mixture.detach()
        found = modules()
        assert len(found) == len(before)
        assert all(a[1] is b[1] and a == b for a, b in zip(found, before, strict=True))
    assert same_bits(of(model), base)
    assert state().keys() == weights.keys()
    assert same_bits(tuple(state().values()), tuple(weights.values()))
