"""The models whose cost is measured, experts for them, and the ways of using these at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn

from benchmarks.shared.options import Options
from composer.diffusion.load import load_model
from composer.experts import LowRank, ModuleNames, read_expert
from composer.mixture import attach
from composer.mixture.build import new_gates
from composer.training.gates.train import RECOMMENDED

RANK = 16
SIZE = 32  # of the latents of SD1.5: pictures of 256 px, which a CPU makes in seconds
Experts = Mapping[str, Mapping[str, LowRank]]
Way = Callable[["Subject", Experts], Any]


@dataclass(kw_only=True)
class Subject:
    """A U-Net, a call of it, and experts for it.

    experts: so many of them, by name, with their factors by site.
    small: a step takes a fraction of a second, and more rounds are needed.
    """

    name: str
    title: str
    loras: str
    unet: Any
    inputs: Mapping[str, Any]
    experts: Callable[[int], Experts]
    small: bool = field(default=True)

    def copy(self, besides: Sequence[str] = ()) -> Any:
        """The U-Net in modules of its own over the same weights, but for those of `besides`."""
        own = {id(self.unet.get_submodule(path).weight) for path in besides}
        shared = {id(p): p for p in self.unet.parameters() if id(p) not in own}
        return copy.deepcopy(self.unet, shared)

    def forget(self) -> None:
        """Drop the U-Net, of which a way has its copy."""
        self.unet = None


def random_experts(unet: Any, paths: Sequence[str]) -> Callable[[int], Experts]:
    """Experts of random factors at these modules."""
    # not the U-Net itself: `forget` is to let go of all of it
    shapes = {path: tuple(unet.get_submodule(path).weight.shape) for path in paths}

    def draw(count: int) -> Experts:
        generator = torch.Generator().manual_seed(0)

        def factors(path: str) -> LowRank:
            outputs, inputs = shapes[path]
            down = torch.randn(RANK, inputs, generator=generator) / math.sqrt(inputs)
            up = torch.randn(outputs, RANK, generator=generator) / math.sqrt(RANK * inputs)
            return LowRank(down=down, up=up, scale=1.0)

        return {
            f"expert{number}": {f"unet.{path}": factors(path) for path in paths}
            for number in range(count)
        }

    return draw


def toybox(setup: Options) -> Subject:
    """The shipped model, with random experts where kohya's script puts them."""
    model = load_model(setup.model)
    unet: Any = model.unet
    paths = [
        path
        for path, module in unet.named_modules()
        if isinstance(module, nn.Linear) and (".attn" in path or ".ff." in path)
    ]
    return Subject(
        name="toybox",
        title="The shipped model",
        loras=f"random LoRAs of rank {RANK} at attention and feed-forward",
        unet=unet,
        inputs=_inputs(unet, unet.config.sample_size, model.token_limit),
        experts=random_experts(unet, paths),
    )


def shipped(setup: Options) -> Subject:
    """The shipped model with the shipped LoRAs."""
    subject = toybox(setup)
    modules = ModuleNames.of(load_model(setup.model).models, model="the shipped model")
    files = sorted(setup.loras.glob("*.safetensors"))

    def read(count: int) -> Experts:
        found = {path.stem: read_expert(path, modules, name=path.stem) for path in files[:count]}
        return {
            name: {site: f for site, f in expert.sites.items() if site.startswith("unet.")}
            for name, expert in found.items()
        }

    subject.name, subject.experts = "shipped", read
    subject.loras = "the shipped LoRAs, which change convolutions too"
    return subject


def sd15(setup: Options) -> Subject:
    """Stable Diffusion 1.5's U-Net at its real width, its weights random."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    cast(Any, torch).manual_seed(0)
    # the class's own defaults are SD1.5's but for these two
    unet: Any = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()
    paths = [
        path
        for path, module in unet.named_modules()
        if isinstance(module, nn.Linear) and ".attn" in path
    ]
    return Subject(
        name="sd15",
        title="A random U-Net of Stable Diffusion 1.5",
        loras=f"random LoRAs of rank {RANK} at attention",
        unet=unet,
        inputs=_inputs(unet, SIZE, 77),
        experts=random_experts(unet, paths),
        small=False,
    )


def _inputs(unet: Any, size: int, words: int) -> dict[str, Any]:
    """The two rows of classifier-free guidance."""
    generator = torch.Generator().manual_seed(1)
    width = unet.config.cross_attention_dim
    return {
        "sample": torch.randn(2, unet.config.in_channels, size, size, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, words, width, generator=generator),
    }


def fused(subject: Subject, experts: Experts) -> Any:
    """The experts' mean in the weights."""
    paths = {site.partition(".")[2] for sites in experts.values() for site in sites}
    unet = subject.copy(besides=sorted(paths))
    with torch.no_grad():
        for sites in experts.values():
            for site, f in sites.items():
                weight = unet.get_submodule(site.partition(".")[2]).weight
                delta = f.up.float().flatten(1) @ f.down.float().flatten(1)
                weight.add_(delta.reshape(weight.shape), alpha=f.scale / len(experts))
    return unet


def gated(subject: Subject, experts: Experts) -> Any:
    """A learned gate with the recommended settings for each block."""
    unet = subject.copy()
    mixture = attach({"unet": unet}, experts, granularity="block")
    gates = new_gates(
        mixture,
        {"unet": replace(RECOMMENDED, input="hidden")},
        lambda: unet(**subject.inputs),
        seed=0,
    )
    mixture.set_gates(gates)
    return unet


def constant(subject: Subject, experts: Experts) -> Any:
    """Constant gates: the experts' mean."""
    unet = subject.copy()
    mixture = attach({"unet": unet}, experts, granularity="block")
    mixture.set_weights(dict.fromkeys(experts, 1 / len(experts)))
    return unet


def adapters(subject: Subject, experts: Experts) -> Any:
    """The experts' mean by diffusers' set_adapters, over PEFT's layers."""
    from peft import LoraConfig

    unet = subject.copy()
    for name, sites in experts.items():
        paths = {site.partition(".")[2]: f for site, f in sites.items()}
        ranks = {path: f.down.shape[0] for path, f in paths.items()}
        # alpha as the rank: PEFT scales by 1, and our scale is in the factor
        config = LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            rank_pattern=ranks,
            alpha_pattern=ranks,
            target_modules=list(paths),
        )
        unet.add_adapter(config, adapter_name=name)
        for path, f in paths.items():
            layer = unet.get_submodule(path)
            layer.lora_A[name].weight.data.copy_(f.down * f.scale)
            layer.lora_B[name].weight.data.copy_(f.up)
    unet.set_adapters(list(experts), [1 / len(experts)] * len(experts))
    return unet.requires_grad_(False).eval()


SUBJECTS: dict[str, Callable[[Options], Subject]] = {
    "toybox": toybox,
    "shipped": shipped,
    "sd15": sd15,
}
WAYS: dict[str, Way] = {
    "fused": fused,
    "gated": gated,
    "constant gates": constant,
    "set_adapters": adapters,
}
