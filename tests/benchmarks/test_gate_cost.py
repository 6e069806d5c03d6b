"""The benchmark of cost: the ways hold the same experts, the ratios are of medians, and it runs."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from benchmarks.gates import cost
from benchmarks.gates.cost_ways import WAYS, Subject, random_experts
from benchmarks.shared.results import read_results
from composer.experts import LowRank

PATHS = ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "time_embedding.linear_1"]


def tiny(**changed: Any) -> Subject:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
    ).eval()
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 5, 32),
    }
    settings = {"experts": random_experts(unet, PATHS), **changed}
    return Subject(
        name="tiny", title="Tiny", loras="two sites", unet=unet, inputs=inputs, **settings
    )


def of_several_kinds(count: int) -> dict[str, dict[str, LowRank]]:
    """Ranks, scales and sites of their own, a convolution among them."""
    found: dict[str, dict[str, LowRank]] = {}
    for number in range(count):
        rank = 2 + number
        conv = LowRank(down=torch.randn(rank, 32, 3, 3), up=torch.randn(32, rank, 1, 1), scale=0.02)
        query = LowRank(down=torch.randn(rank, 64), up=torch.randn(64, rank), scale=0.1 * rank)
        sites = {"unet.down_blocks.0.resnets.0.conv1": conv, f"unet.{PATHS[0]}": query}
        found[f"expert{number}"] = sites if number else {f"unet.{PATHS[0]}": query}
    return found


@pytest.mark.parametrize("experts", [None, of_several_kinds])
def test_all_ways_hold_the_same_experts(experts: Any) -> None:
    torch.manual_seed(0)
    subject = tiny() if experts is None else tiny(experts=experts)
    plain = subject.unet(**subject.inputs).sample
    weights = {name: p.clone() for name, p in subject.unet.named_parameters()}
    factors = subject.experts(3)
    ways = {name: way(subject, factors) for name, way in WAYS.items()}
    cost.check(subject, ways)
    for model in ways.values():
        assert float((model(**subject.inputs).sample - plain).detach().abs().max()) > 1e-3
    now = dict(subject.unet.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in weights.items())


def test_different_experts_are_noticed() -> None:
    subject = tiny()
    ways = {name: way(subject, subject.experts(2)) for name, way in WAYS.items()}
    ways["set_adapters"].set_adapters(["expert0"], [1.0])
    with pytest.raises(AssertionError, match="apart"):
        cost.check(subject, ways)


def test_ratios_are_of_medians_and_their_intervals_of_rounds() -> None:
    beside = [1.0, 4.0, 2.0, 8.0, 3.0]
    found = cost.ratio([2 * value for value in beside], beside)
    # whatever a round cost, it cost twice as much: pairs are kept together
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    found = cost.ratio([3.0, 1.0, 2.0], [1.0, 1.0, 4.0])
    assert found.value == 2.0 and found.low < 2.0 < found.high


def test_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def small(told: object) -> Subject:
        return tiny()

    monkeypatch.setattr(cost, "SUBJECTS", {"tiny": small})
    monkeypatch.setattr(cost, "memory", lambda *_: 1)
    threads = torch.get_num_threads()
    try:
        told = ["--count", "1", "--experts", "1", "2", "--results", str(tmp_path)]
        cost.main(told)
    finally:
        torch.set_num_threads(threads)
    rows = read_results(tmp_path / "gates_cost.json").rows
    assert [(row["experts"], row["way"]) for row in rows] == [(n, w) for n in (1, 2) for w in WAYS]
    assert all(row["beside fused (×)"] == 1.0 for row in rows if row["way"] == "fused")


def test_memory_is_that_of_a_step() -> None:
    subject = tiny()
    weight = weakref.ref(subject.unet.get_submodule(PATHS[0]).weight)
    held = cost.peak(subject, WAYS["fused"], 2)
    assert weight() is None  # fused, nobody needs it
    assert 50_000 < held < 8_000_000  # kB, of Python and its libraries above all
