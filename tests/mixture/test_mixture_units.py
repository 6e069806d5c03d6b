"""Units: which modules a gate governs, and in which order the model runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_hosts import HOSTS, UNETS, Host, experts_at, gates_for, make_host, output
from torch import nn

from composer.mixture import GRANULARITIES, attach
from composer.mixture.units import UnitPlan, plan_units

BLOCK_CLASSES = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
EVERYWHERE = ("",)
T = "unet.down_blocks.0.attentions.0"
LAYER_OF = {  # of SD1.5's kind
    f"{T}.transformer_blocks.0.attn1.to_q": f"{T}.transformer_blocks.0.attn1",
    f"{T}.transformer_blocks.0.attn1.to_out.0": f"{T}.transformer_blocks.0.attn1",
    f"{T}.transformer_blocks.0.attn2.to_k": f"{T}.transformer_blocks.0.attn2",
    f"{T}.transformer_blocks.0.ff.net.0.proj": f"{T}.transformer_blocks.0.ff",
    f"{T}.transformer_blocks.0.ff.net.2": f"{T}.transformer_blocks.0.ff",
    f"{T}.proj_in": T,
    f"{T}.proj_out": T,
    "unet.mid_block.resnets.1.conv1": "unet.mid_block.resnets.1",
    "unet.mid_block.resnets.1.time_emb_proj": "unet.mid_block.resnets.1",
    "unet.down_blocks.0.downsamplers.0.conv": "unet.down_blocks.0.downsamplers.0",
    "unet.up_blocks.0.upsamplers.0.conv": "unet.up_blocks.0.upsamplers.0",
    "unet.conv_in": "unet",
    "unet.conv_out": "unet",
}
TEXT_LAYER_OF = {
    "text_encoder.encoder.layers.1.self_attn.q_proj": "text_encoder.encoder.layers.1.self_attn",
    "text_encoder.encoder.layers.1.self_attn.out_proj": "text_encoder.encoder.layers.1.self_attn",
    "text_encoder.encoder.layers.1.mlp.fc2": "text_encoder.encoder.layers.1.mlp",
}


def planned(host: Host, granularity: Any, among: tuple[str, ...] = EVERYWHERE) -> list[UnitPlan]:
    return plan_units({host.part: host.model}, host.sites(among), granularity)


def unit_of(plans: list[UnitPlan]) -> dict[str, str]:
    return {site: plan.name for plan in plans for site in plan.sites}


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_units_come_in_the_order_of_the_calls(kind: str, granularity: Any) -> None:
    host = make_host(kind)
    plans = planned(host, granularity)
    called: list[str] = []

    def note(path: str) -> Any:
        return lambda *_: called.append(path)

    for plan in plans:
        assert plan.path is not None
        host.model.get_submodule(plan.path).register_forward_pre_hook(note(plan.path))
    output(host)
    assert called == [plan.path for plan in plans]
    assert len(plans) >= (1 if granularity == "network" else 3)


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_site_belongs_to_one_unit(kind: str, granularity: Any) -> None:
    host = make_host(kind)
    plans = planned(host, granularity)
    assert sorted(site for plan in plans for site in plan.sites) == sorted(host.sites(EVERYWHERE))
    assert all(plan.sites and plan.part == host.part for plan in plans)
    assert len({plan.name for plan in plans}) == len(plans)


@pytest.mark.parametrize("kind", UNETS)
def test_blocks_of_a_unet(kind: str) -> None:
    host = make_host(kind)
    blocks = {
        f"unet.{path}"
        for path, module in host.model.named_modules()
        if type(module).__name__ in BLOCK_CLASSES
    }
    plans = planned(host, "block", ("attentions", "resnets", "samplers"))
    assert {plan.name for plan in plans} == blocks
    for plan in plans:
        assert f"unet.{plan.path}" == plan.name
        assert all(site.startswith(plan.name + ".") for site in plan.sites)
    # SD1.5's kind: three transformers, a resnet for each place, one sampler down and one up
    assert kind != "sd15" or len(plans) == 4 + 2 + 2 + 4 + 2


def test_several_transformer_layers_are_one_block() -> None:
    plans = planned(make_host("sdxl"), "block")
    units = unit_of(plans)
    inner = "unet.mid_block.attentions.0.transformer_blocks"
    assert units[f"{inner}.0.attn1.to_q"] == "unet.mid_block.attentions.0"
    assert units[f"{inner}.1.ff.net.2"] == "unet.mid_block.attentions.0"


def test_blocks_of_a_text_encoder() -> None:
    plans = planned(make_host("clip"), "block")
    assert [plan.path for plan in plans] == [f"encoder.layers.{i}" for i in range(3)]
    assert all(len(plan.sites) == 6 for plan in plans)


def test_the_tenth_layer_comes_after_the_second() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(12))
    sites = [f"te.layers.{i}" for i in reversed(range(12))]
    plans = plan_units({"te": model}, sites, "matrix")
    assert [plan.path for plan in plans] == [f"layers.{i}" for i in range(12)]


def test_layers() -> None:
    units = unit_of(planned(make_host("sd15"), "layer"))
    assert {site: units[site] for site in LAYER_OF} == LAYER_OF
    units = unit_of(planned(make_host("clip"), "layer"))
    assert {site: units[site] for site in TEXT_LAYER_OF} == TEXT_LAYER_OF
    second = "unet.mid_block.attentions.0.transformer_blocks.1"
    units = unit_of(planned(make_host("sdxl"), "layer"))
    assert units[f"{second}.attn2.to_v"] == f"{second}.attn2"


@pytest.mark.parametrize("kind", HOSTS)
def test_matrices(kind: str) -> None:
    for plan in planned(make_host(kind), "matrix"):
        assert plan.sites == (plan.name,) == (f"{plan.part}.{plan.path}",)
        assert not plan.whole


def test_one_unit_for_each_network() -> None:
    unet, text = make_host("sdxl"), make_host("clip")
    usual = [*text.sites(), *unet.sites(), "unet.conv_in", "unet.conv_out"]
    plans = plan_units({"unet": unet.model, "text_encoder": text.model}, usual, "network")
    assert [(plan.name, plan.path, plan.whole) for plan in plans] == [
        ("unet", "conv_in", True),
        ("text_encoder", "embeddings", True),
    ]
    assert set(plans[0].sites) | set(plans[1].sites) == set(usual)


@pytest.mark.parametrize("granularity", ["network", "block", "layer"])
def test_sites_outside_of_blocks(granularity: Any) -> None:
    """They fall to the network; what runs before its first hidden state cannot wait for it."""
    units = unit_of(planned(make_host("sdxl"), granularity))
    assert units["unet.conv_in"] == units["unet.conv_out"] == "unet"
    assert units["unet.time_embedding.linear_1"] == "unet.time_embedding"
    assert units["unet.add_embedding.linear_2"] == "unet.add_embedding"


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_gate_is_asked_before_its_sites_run(granularity: Any) -> None:
    """With sites everywhere, at a batch size that the gates have not met before."""
    host = make_host("sdxl")
    experts = experts_at(host, host.sites(EVERYWHERE))
    mixture = attach({"unet": host.model}, experts, granularity=granularity)
    mixture.set_gates(gates_for(mixture, host.run))
    both = output(host)
    alone = output(host.rows(slice(1, 2)))
    torch.testing.assert_close(alone, both[1:], rtol=1e-4, atol=1e-5)
    rows: list[int] = []
    for site in mixture.sites.values():
        site.register_forward_pre_hook(lambda site, _: rows.append(site.routing.weights.shape[0]))
    output(host)
    assert len(rows) >= len(mixture.sites) and set(rows) == {2}


def test_units_without_sites_are_left_out() -> None:
    host = make_host("sd15")
    plans = plan_units({"unet": host.model}, [f"{T}.proj_in", f"{T}.proj_out"], "layer")
    assert [plan.name for plan in plans] == [T]
