"""What the tests of learned gates share: tiny models of every kind, experts everywhere, gates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tiny_models import Factors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from composer.mixture import Gate, GateSettings, LearnedGate, Mixture, Seen, attach
from composer.mixture.seen import as_tokens

UNETS = ("sd15", "sd2", "sdxl")
HOSTS = (*UNETS, "clip")
RANKS = {"ada": 4, "ink": 2, "sea": 3}
USUAL = ("attentions", "resnets", "samplers", "layers")
"""Where most files have their sites: in blocks."""


@dataclass(frozen=True)
class Host:
    """A model of one kind, and inputs for it."""

    kind: str
    model: Any
    part: str
    inputs: dict[str, Any]

    def run(self, model: Any = None) -> Tensor:
        """The output, with its gradient where there is one."""
        result = (self.model if model is None else model)(**self.inputs)
        return result.last_hidden_state if self.part == "text_encoder" else result.sample

    def rows(self, rows: slice) -> Host:
        """With these rows of the batch alone."""

        def cut(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: cut(inner) for name, inner in value.items()}
            return value[rows]

        return replace(self, inputs=cut(self.inputs))

    def sites(self, among: Iterable[str] = USUAL) -> list[str]:
        """Every Linear and Conv2d whose path holds one of these words."""
        return [
            f"{self.part}.{path}"
            for path, module in self.model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and any(word in path for word in among)
        ]


@cache
def _made(kind: str) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    if kind == "clip":
        config = CLIPTextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=16,
        )
        ids = torch.cat([torch.arange(10), torch.arange(40, 50)]).reshape(2, 10)
        return CLIPTextModel(config).eval(), {"input_ids": ids}
    settings: dict[str, Any] = {
        "sd15": {"attention_head_dim": 8},
        "sd2": {"attention_head_dim": (4, 8), "use_linear_projection": True, "layers_per_block": 2},
        "sdxl": {
            "attention_head_dim": (4, 8),
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
        },
    }[kind]
    model = UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "norm_num_groups": 8,
            **settings,
        }
    ).eval()
    inputs: dict[str, Any] = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([37, 900]),
        "encoder_hidden_states": torch.randn(2, 7, 32),
    }
    if kind == "sdxl":
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 16), "time_ids": sizes}
    return model, inputs


def make_host(kind: str) -> Host:
    """A model of its own, with two rows of input at different timesteps."""
    model, inputs = _made(kind)
    part = "text_encoder" if kind == "clip" else "unet"
    return Host(kind, copy.deepcopy(model), part, dict(inputs))


def experts_at(host: Host, sites: Sequence[str] | None = None) -> dict[str, dict[str, Factors]]:
    """Three experts of different ranks, all with the same sites."""
    return _experts(host.kind, None if sites is None else tuple(sites))


@cache
def _experts(kind: str, sites: tuple[str, ...] | None) -> dict[str, dict[str, Factors]]:
    host = make_host(kind)
    generator = torch.Generator().manual_seed(3)
    experts: dict[str, dict[str, Factors]] = {name: {} for name in RANKS}
    for site in host.sites() if sites is None else sites:
        out, width, *kernel = host.model.get_submodule(site.partition(".")[2]).weight.shape
        for name, rank in RANKS.items():
            down = torch.randn(rank, width, *kernel, generator=generator)
            up = torch.randn(out, rank, *[1] * len(kernel), generator=generator)
            experts[name][site] = Factors(down, up, 0.4 / (rank * down[0].numel()) ** 0.5)
    return experts


def gates_for(
    mixture: Mixture,
    run: Callable[[], Any],
    settings: GateSettings | None = None,
    *,
    even: bool = False,
    seed: int = 0,
) -> dict[str, LearnedGate]:
    """A gate for each unit, as if trained (every parameter at random) or as even as can be."""
    settings = settings or GateSettings()
    seen: dict[str, tuple[int, int]] = {}
    handles: list[Any] = []

    def look(name: str, whole: bool) -> Any:
        def hook(_: Any, inputs: Any, given: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            hidden = inputs[0] if inputs else given.get("hidden_states")
            looks_at = output if whole or settings.input == "experts" else hidden
            tokens, _ = as_tokens(looks_at)
            seen[name] = (tokens.shape[2], tokens.shape[1])

        return hook

    for name, unit in mixture.units.items():
        assert unit.module is not None
        hook = look(name, unit.plan.whole)
        handles.append(unit.module.register_forward_hook(hook, with_kwargs=True))
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    torch.manual_seed(seed)
    gates: dict[str, LearnedGate] = {}
    for name, unit in mixture.units.items():
        width, tokens = seen[name]
        mine = settings if unit.timed else replace(settings, time=False)
        gates[name] = gate = LearnedGate(mine, width, unit.present, time_width=128, tokens=tokens)
        with torch.no_grad():
            if even:
                gate.e.zero_()
                continue
            gate.e.copy_(torch.randn(gate.e.shape) * 3.0)
            gate.tau.fill_(1.3)
            for parameter in (gate.b, gate.clock):
                if parameter is not None:
                    parameter.add_(torch.randn(parameter.shape) * 0.5)
    return gates


class TokenGate(Gate):
    """A gate of the tests' own: for each token a softmax of what the unit sees there."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.e = nn.Parameter(torch.randn(experts, width))

    def forward(self, seen: Seen | None, mask: Tensor) -> Tensor:
        """(batch, tokens, experts)."""
        assert seen is not None
        logits = nn.functional.normalize(seen.hidden.float(), dim=-1) @ self.e.T
        return logits.softmax(dim=-1).masked_fill(~mask, 0.0)


def token_gates(mixture: Mixture, run: Callable[[], Any]) -> dict[str, TokenGate]:
    """One for each unit."""
    torch.manual_seed(0)
    widths = {name: gate.width for name, gate in gates_for(mixture, run).items()}
    return {name: TokenGate(width, len(mixture.names)) for name, width in widths.items()}


def gated(
    kind: str, granularity: Any = "block", settings: GateSettings | None = None, **more: Any
) -> tuple[Host, Mixture]:
    """A host with experts and trained gates on it."""
    host = make_host(kind)
    mixture = attach({host.part: host.model}, experts_at(host), granularity=granularity)
    mixture.set_gates(gates_for(mixture, host.run, settings, **more))
    return host, mixture


@torch.no_grad()
def output(host: Host, model: Any = None) -> Tensor:
    return host.run(model)


def closeness(one: Tensor, other: Tensor) -> float:
    """The largest difference, beside the largest value."""
    return float((one - other).abs().max() / other.abs().max())
