"""The ways of adapting one language model that `benchmarks.mixlora.cost` compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.language.mixlora_config import MixLoraConfig
from composer.mixlora import LoraSettings, MixLora, RouterSettings, attach_mixlora
from composer.mixlora.host import FfnHost

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama of random weights, and the adapter on it."""

    hidden: int
    inner: int
    layers: int
    words: int
    experts: int
    top_k: int
    rank: int
    dropout: float
    device: str

    def base(self) -> nn.Module:
        """The frozen model."""
        from transformers import LlamaConfig, LlamaForCausalLM

        cast(Any, torch).manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.words,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.hidden // 64,
            use_cache=False,
        )
        return cast(nn.Module, LlamaForCausalLM(config)).to(self.device).requires_grad_(False)

    @property
    def config(self) -> MixLoraConfig:
        """MixLoRA as in the paper's table 3."""
        lora = LoraSettings(rank=self.rank, alpha=2.0 * self.rank, dropout=self.dropout)
        router = RouterSettings(experts=self.experts, top_k=self.top_k)
        return MixLoraConfig(experts=lora, attention=lora, router=router)


def sparse(shape: Shape, adapters: int = 1) -> tuple[nn.Module, MixLora]:
    """Composer's MixLoRA, one adapter or several on one base, as if trained."""
    model = shape.base()
    names = {f"a{number}": shape.config for number in range(adapters)}
    mixlora = attach_mixlora(model, names, seed=0)
    cast(Any, torch).manual_seed(1)
    with torch.no_grad():
        for name in names:
            for _, parameter in mixlora.named_parameters(name):
                parameter.normal_(0.0, 0.02)
    return model, mixlora


class LoopHost(nn.Module):
    """The same FFN by a loop over experts; `shared` runs W_1 and W_3 once for all, as the authors'
    optimised code does, and otherwise each expert runs the whole FFN on its tokens."""

    def __init__(self, host: FfnHost, *, shared: bool) -> None:
        super().__init__()
        experts = host.experts("a0")
        assert experts is not None
        self.base, self.experts, self.shared = host.base, experts, shared

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (batch, tokens, width) -> the same."""
        base, experts = cast(Any, self.base), self.experts
        flat = hidden.reshape(-1, hidden.shape[-1])
        p = functional.linear(flat.float(), experts.router.weight).softmax(dim=-1)
        weights, chosen = p.topk(experts.router.settings.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        gate, up = (base.gate_proj(flat), base.up_proj(flat)) if self.shared else (None, None)
        out = torch.zeros_like(flat)
        mask = functional.one_hot(chosen, experts.router.settings.experts).permute(2, 1, 0)
        for expert in range(mask.shape[0]):
            choice, token = torch.where(mask[expert])
            read = flat[token]
            g = base.gate_proj(read) if gate is None else gate[token]
            u = base.up_proj(read) if up is None else up[token]
            g = g + self._delta("gate_proj", expert, read)
            u = u + self._delta("up_proj", expert, read)
            value = base.act_fn(g) * u
            y = base.down_proj(value) + self._delta("down_proj", expert, value)
            out = out.index_add(0, token, y * weights[token, choice, None].to(y.dtype))
        return out.reshape(hidden.shape)

    def _delta(self, path: str, expert: int, read: Tensor) -> Tensor:
        factors = self.experts.at(path)
        assert factors is not None
        read = functional.dropout(read, factors.dropout)
        low = functional.linear(read, factors.A[expert])
        return functional.linear(low, factors.B[expert]) * factors.settings.scale


def looped(shape: Shape, *, shared: bool) -> nn.Module:
    """The same adapter with the same weights, by a loop over experts."""
    model, mixlora = sparse(shape)
    for path, host in mixlora.hosts.items():
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, LoopHost(host, shared=shared))
    return model


def plain_lora(shape: Shape) -> nn.Module:
    """PEFT's LoRA on all projections, of the rank that trains as many parameters."""
    from peft import LoraConfig, get_peft_model

    ffn, attention = 3 * (shape.hidden + shape.inner), 4 * 2 * shape.hidden  # for each rank
    wanted = shape.rank * (shape.experts * ffn + attention) + shape.experts * shape.hidden
    rank = round(wanted / (ffn + attention))
    lora = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=shape.dropout, target_modules=list(LINEARS)
    )
    return cast(nn.Module, get_peft_model(cast(Any, shape.base()), lora))


def reference(shape: Shape) -> nn.Module:
    """The authors' package `mixlora` with the same weights.

    Raises:
        Exception: it is not installed, or does not run with these libraries.
    """
    package: Any = import_module("mixlora.model")
    config: Any = import_module("mixlora.config").MixLoraConfig

    _, mixlora = sparse(shape)
    fields = {**shape.config.to_reference(), "base_model_name_or_path": "random"}
    # it refuses a dropout of 0
    settings = config.from_config({**fields, "lora_dropout": shape.dropout or 1e-9})
    settings.adapter_name_, settings.dtype_ = "default", torch.float32
    weights = {key: value.to(shape.device) for key, value in mixlora.state_dict("a0").items()}
    model = shape.base()
    for layer in cast(Any, model).model.layers:
        # its activation is the config's, and by default None
        settings.act_fn_ = layer.mlp.act_fn
    package.inject_adapter_in_model(model, settings, weights)
    for layer in cast(Any, model).model.layers:
        moe = layer.mlp.mixlora_moes["default"]
        moe.gate_ = nn.Parameter(moe.gate_)
        moe.act_fn_ = layer.mlp.act_fn
    return model


def trained(model: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def words(shape: Shape, batch: int, tokens: int) -> Tensor:
    """A batch of random words."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, shape.words, (batch, tokens), generator=generator).to(shape.device)


def build(way: str, shape: Shape, batch: int) -> nn.Module:
    """A model that is adapted in this way; of two on one base each has half of the batch."""
    if way != TWO:
        return WAYS[way](shape)
    model, mixlora = sparse(shape, adapters=2)
    mixlora.assign(["a0", "a1"] * (batch // 2))
    return model


OURS, LOOP, SHARED = (
    "MixLoRA here",
    "MixLoRA, a loop over experts",
    "MixLoRA, a loop, W1 and W3 shared",
)
LORA = "LoRA of as many parameters (PEFT)"
PACKAGE, BARE, TWO = "the authors' package", "no adapter", "two MixLoRAs on one base"

WAYS: dict[str, Callable[[Shape], nn.Module]] = {
    OURS: lambda shape: sparse(shape)[0],
    LOOP: lambda shape: looped(shape, shared=False),
    SHARED: lambda shape: looped(shape, shared=True),
    LORA: plain_lora,
    PACKAGE: reference,
    BARE: lambda shape: shape.base(),
}
