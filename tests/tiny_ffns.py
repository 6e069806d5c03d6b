"""Tiny models of every family whose FFNs take experts, and the oracle: a loop over experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from composer.language.mixlora_config import MixLoraConfig
from composer.mixlora import LoraSettings, MixLora, RouterSettings, attach_mixlora
from composer.mixlora.host import FfnHost

WIDTH, INNER, WORDS, TOKENS = 16, 24, 40, 6

_LAYERS = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
_CAUSAL = {**_LAYERS, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1}


def _causal(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(**_CAUSAL, eos_token_id=None, **settings)
        return getattr(transformers, f"{name}ForCausalLM")(config)

    return make


def _t5(activation: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from transformers import T5Config, T5ForConditionalGeneration

        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=WORDS,
                d_model=WIDTH,
                d_kv=4,
                d_ff=INNER,
                num_layers=2,
                num_heads=4,
                feed_forward_proj=activation,
                decoder_start_token_id=0,
                initializer_factor=1.0,
            )
        )

    return make


def _clip() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**_LAYERS))


def _unet() -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": _causal("Llama", mlp_bias=True),
    "mistral": _causal("Mistral"),
    "gemma": _causal("Gemma", head_dim=4),
    "gemma2": _causal("Gemma2", head_dim=4),
    "qwen2": _causal("Qwen2"),
    "qwen3": _causal("Qwen3", head_dim=4),
    "phi": _causal("Phi"),
    "phi3": _causal("Phi3"),
    "t5": _t5("relu"),
    "t5-gated": _t5("gated-gelu"),
    "clip": _clip,
    "unet": _unet,
}


def make(family: str) -> nn.Module:
    """A tiny model of a family, with fixed random weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FAMILIES[family]().eval()


def words(batch: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, WORDS, (batch, TOKENS), generator=generator)


def run(family: str, model: nn.Module, batch: int = 3) -> Tensor:
    """The model's output, whatever it is, for fixed input."""
    if family == "unet":
        generator = torch.Generator().manual_seed(1)
        sample = torch.randn(batch, 4, 8, 8, generator=generator)
        text = torch.randn(batch, 5, WIDTH, generator=generator)
        sample, text = sample.to(model.dtype), text.to(model.dtype)  # pyright: ignore
        return model(sample, torch.full((batch,), 37), text).sample
    ids = words(batch)
    if family.startswith("t5"):
        return model(input_ids=ids, decoder_input_ids=ids.flip(1)).logits
    output = model(input_ids=ids)
    return output.last_hidden_state if family == "clip" else output.logits


ROUTERS: dict[str, dict[str, Any]] = {
    "top-k": {"top_k": 2},
    "top-1": {"top_k": 1},
    "all": {"top_k": 4},
    "dynamic": {"strategy": "mixlora-dynamic", "top_p": 0.6},
    "dynamic+": {"strategy": "mixlora-dynamic", "top_p": 0.6, "remainder": True},
    "switch": {"strategy": "mixlora-switch", "capacity": 2},
    "switch+": {"strategy": "mixlora-switch", "capacity": 2, "remainder": True},
}


def config(
    router: str = "top-k", *, attention: LoraSettings | None = None, experts: int = 4, **lora: Any
) -> MixLoraConfig:
    """An adapter of four experts of rank 3."""
    values = {"rank": 3, "alpha": 6.0, "dropout": 0.0, **lora}
    return MixLoraConfig(
        experts=LoraSettings(**values),
        attention=attention,
        router=RouterSettings(experts=experts, **ROUTERS[router]),
    )


def attached(
    model: nn.Module, *configs: MixLoraConfig, seed: int = 3, size: float = 0.3
) -> MixLora:
    """Adapters a0, a1, ... of random weights, as if they had been trained."""
    mixlora = attach_mixlora(model, {f"a{i}": one for i, one in enumerate(configs)}, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in mixlora.names:
            for path, parameter in mixlora.named_parameters(name):
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                if path.endswith("magnitude"):
                    parameter.mul_(1.0 + 0.2 * noise)
                else:
                    parameter.copy_(size * noise)
    return mixlora


class NaiveFfn(nn.Module):
    """One adapter of a host, written down expert by expert: each runs on all tokens.

    An expert is the frozen FFN with W + s B A in the place of W (DoRA: its rows scaled to m).
    """

    def __init__(self, host: FfnHost, name: str) -> None:
        super().__init__()
        experts = host.experts(name)
        assert experts is not None
        self.host, self.experts = host, experts

    def forward(self, hidden: Tensor) -> Tensor:
        weights = torch.stack([self.weigh(row) for row in hidden])  # (rows, tokens, experts + 1)
        numbers = [*range(self.experts.router.settings.experts), None]
        outputs = torch.stack([self.expert(number, hidden) for number in numbers], dim=-1)
        return (outputs * weights[:, :, None]).sum(dim=-1)

    def expert(self, number: int | None, hidden: Tensor) -> Tensor:
        base, form = self.host.base, self.host.form
        weights: dict[str, Tensor] = {}
        for path in form.linears if number is not None else ():
            factors = self.experts.at(path)
            if factors is None:
                continue
            whole = form.linear(base, path).weight
            whole = whole + self.experts.lora.scale * factors.B[number] @ factors.A[number]
            if factors.magnitude is not None:
                norm = whole.norm(dim=1).detach()
                whole = whole * (factors.magnitude[number] / norm)[:, None]
            weights[f"{path}.weight"] = whole
        return functional_call(base, weights, (hidden,))

    def weigh(self, tokens: Tensor) -> Tensor:
        """(tokens, experts + 1), the last column for the frozen FFN alone."""
        told = self.experts.router.settings
        rows: list[Tensor] = []
        taken = [0] * told.experts
        for token in tokens:
            # routers are float32 in a model of 64 bits too
            p = (self.experts.router.weight @ token.float()).softmax(-1).to(token.dtype)
            order = p.argsort(descending=True).tolist()
            row = [p.new_zeros(()) for _ in range(told.experts + 1)]
            if told.strategy == "mixlora":
                best = order[: told.top_k]
                for e in best:
                    row[e] = p[e] / p[best].sum()
            elif told.strategy == "mixlora-dynamic":
                total = 0.0
                for e in order:
                    row[e] = p[e]
                    total += float(p[e].detach())
                    if total > told.top_p:
                        break
            else:
                e = order[0]
                taken[e] += 1
                room = told.capacity is None or taken[e] <= told.capacity
                row[e if room else -1] = p[e]
            if told.remainder:
                row[-1] = row[-1] + 1.0 - torch.stack(row).sum()
            rows.append(torch.stack(row))
        return torch.stack(rows)


def naively(mixlora: MixLora, name: str = "a0") -> None:
    """Put the oracle in the place of each host."""
    for path, host in mixlora.hosts.items():
        parent, _, last = path.rpartition(".")
        setattr(mixlora.model.get_submodule(parent), last, NaiveFfn(host, name))


def gradients(mixlora: MixLora, loss: Tensor, name: str = "a0") -> dict[str, Tensor]:
    """Of one adapter's parameters, by path; and none is missing."""
    named = dict(mixlora.named_parameters(name))
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


def scalar(output: Tensor) -> Tensor:
    """Something of an output that depends on all of it."""
    generator = torch.Generator().manual_seed(9)
    return (output * torch.randn(output.shape, generator=generator).to(output)).mean()


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    """Equal to within a part of the largest number."""
    return bool((one - other).abs().max() <= tolerance * (1.0 + other.abs().max()))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal to the last bit."""
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
