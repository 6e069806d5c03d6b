"""A base in 8 or 4 bits by bitsandbytes: adapters learn on it, are saved, and run back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from language_training import losses, mixlora, plain, records, training
from tiny_language import make_tiny_language
from torch import Tensor, nn

from composer.language.complete import with_adapter
from composer.language.load import QUANTISATIONS, LanguageModel, Quantisation, load_language_model
from composer.training.language import train_adapter

functional: Any = pytest.importorskip("bitsandbytes.functional")

BITS = pytest.mark.parametrize("quantisation", [q for q in QUANTISATIONS if q != "none"])
WIDE = {"hidden_size": 64, "intermediate_size": 96}


def base(folder: Path, quantisation: Quantisation) -> LanguageModel:
    if not folder.exists():
        make_tiny_language(folder, **WIDE)
    return load_language_model(folder, quantisation=quantisation)


def whole(linear: Any) -> Tensor:
    """The weights that a Linear of bitsandbytes stands for, in float32."""
    weight = linear.weight
    if linear.weight.dtype == torch.int8:
        return weight.CB.float() * weight.SCB[:, None].float() / 127
    return cast(Tensor, functional.dequantize_4bit(weight.data, weight.quant_state)).float()


def dequantised(model: nn.Module, like: nn.Module) -> nn.Module:
    """`like`, an ordinary model, with the weights that the quantised one stands for."""
    for name, module in cast(Any, model).named_modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            cast(Any, like.get_submodule(name)).weight.data = whole(module)
    return like


def apart(one: Tensor, other: Tensor) -> float:
    """||one - other|| / ||other||"""
    return float((one - other).square().sum() / other.square().sum()) ** 0.5


@BITS
@pytest.mark.parametrize("adapter", [mixlora(), plain()], ids=["mixlora", "lora"])
def test_an_adapter_learns_and_runs_back(
    tmp_path: Path, quantisation: Quantisation, adapter: Any
) -> None:
    language = base(tmp_path / "tiny", quantisation)
    kinds = {type(module).__name__ for module in language.model.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    config = training(tmp_path, adapter=adapter, steps=30, batch_size=6, learning_rate=1e-2)
    reports = list(train_adapter(language, config, records=records(24)))
    made = losses(reports)
    assert sum(made[-5:]) < 0.8 * sum(made[:5])  # type: ignore[arg-type,operator]

    # as over an ordinary base of the same weights, which rounds no input
    again = base(tmp_path / "tiny", quantisation)
    plainly = base(tmp_path / "tiny", "none")
    dequantised(again.model, plainly.model)
    ids = torch.arange(8)[None] + 60
    said: list[Tensor] = []
    for one in (again, plainly):
        with with_adapter(one, config.output):
            said.append(cast(Any, one.model)(input_ids=ids).logits.detach().float())
            assert cast(Any, one.model).generate(ids, max_new_tokens=3).shape == (1, 11)
    assert apart(said[0], said[1]) < 0.05


@BITS
def test_gradients_reach_the_lowest_layer(tmp_path: Path, quantisation: Quantisation) -> None:
    """As over an ordinary base of the same weights."""
    quantised = base(tmp_path / "tiny", quantisation).model
    ordinary = dequantised(quantised, base(tmp_path / "tiny", "none").model)
    for model in (quantised, ordinary):
        with torch.no_grad():  # what bitsandbytes packs for itself when nothing is learnt
            cast(Any, model)(input_ids=torch.tensor([[5, 6, 7]]))
    sent = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    found: list[Tensor] = []
    for model in (quantised, ordinary):
        embedded = sent.clone().requires_grad_()
        cast(Any, model)(inputs_embeds=embedded).logits.square().mean().backward()
        assert embedded.grad is not None
        found.append(embedded.grad)
    assert apart(found[0], found[1]) < 0.1
