"""Gates with weights for each token, at sites of every kind; gates bound to one size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_hosts import Host, TokenGate, experts_at, gated, make_host, output, token_gates
from torch import Tensor, nn
from torch.nn import functional

from composer.errors import ComposerError
from composer.mixture import GateSettings, LearnedGate, Mixture, Site, attach

BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
SITES = {  # site, and what it is weighed by: the block's 64 positions, their mean, or 16 positions
    f"{BLOCK}.attn1.to_q": "each",
    f"{BLOCK}.ff.net.0.proj": "each",
    f"{BLOCK}.attn2.to_q": "each",
    f"{BLOCK}.attn2.to_k": "mean",  # it sees words
    f"{BLOCK}.attn2.to_v": "mean",
    "unet.down_blocks.0.attentions.0.proj_in": "each",
    "unet.down_blocks.0.resnets.0.conv1": "each",
    "unet.down_blocks.0.resnets.0.time_emb_proj": "mean",  # it sees the time
    "unet.down_blocks.0.downsamplers.0.conv": "fewer",
}


def by_token(granularity: Any) -> tuple[Host, Mixture]:
    host, mixture = gated("sd15", granularity)
    mixture.set_gates(token_gates(mixture, host.run))
    return host, mixture


def shown(host: Host, site: Site) -> tuple[Tensor, Tensor]:
    """What a site takes and gives in one pass."""
    caught: list[tuple[Tensor, Tensor]] = []
    handle = site.register_forward_hook(
        lambda _, inputs, result: caught.append((inputs[0], result))
    )
    output(host)
    handle.remove()
    return caught[0]


def delta_of(site: Site, expert: int, hidden: Tensor) -> Tensor:
    """One expert's dense delta at weight 1."""
    base: Any = site.base
    ranks = site.owner == expert
    dense = (site.up[:, ranks].flatten(1) @ site.down[ranks].flatten(1)).reshape(base.weight.shape)
    if isinstance(base, nn.Linear):
        return functional.linear(hidden, dense)
    return functional.conv2d(hidden, dense, None, base.stride, base.padding)


@pytest.mark.parametrize("name", SITES)
@torch.no_grad()
def test_each_kind_of_site(name: str) -> None:
    host, mixture = by_token("block")
    site = mixture.sites[name]
    hidden, found = shown(host, site)
    weights = site.routing.weights  # (batch, tokens, experts)
    assert weights.ndim == 3 and not torch.allclose(weights[:, 0], weights[:, 1])
    expected = site.base(hidden)
    for expert in range(3):
        delta = delta_of(site, expert, hidden)
        weight = weights[..., expert]  # (batch, tokens)
        if SITES[name] == "mean":
            weight = weight.mean(dim=1, keepdim=True)
        elif SITES[name] == "fewer":
            # half the size: each position takes the mean of the four that it covers
            weight = functional.avg_pool2d(weight.reshape(2, 1, 8, 8), 2).flatten(1)
        if delta.ndim == 4:
            weight = weight.reshape(2, 1, *delta.shape[2:])
        elif delta.ndim == 3:
            weight = weight[..., None]
        expected = expected + weight * delta
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, site.base(hidden), atol=1e-2)


@torch.no_grad()
def test_a_matrix_that_sees_one_vector_for_each_picture() -> None:
    name = "unet.mid_block.resnets.0.time_emb_proj"
    host, mixture = by_token("matrix")
    hidden, found = shown(host, mixture.sites[name])
    assert hidden.ndim == 2 and found.shape == (2, 64)
    weights = mixture.routings[name].weights
    assert weights.shape == (2, 1, 3)
    site = mixture.sites[name]
    expected = site.base(hidden) + sum(
        weights[:, :, expert][:, 0, None] * delta_of(site, expert, hidden) for expert in range(3)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(10, 9), (9, 10), (7, 5), (5, 12)])
@torch.no_grad()
def test_a_strided_convolution_of_an_odd_size(size: tuple[int, int]) -> None:
    """The left half of the picture belongs to one expert: it stays on the left."""
    host = make_host("sd15")
    unit = "unet.down_blocks.0.downsamplers.0"
    mixture = attach({"unet": host.model}, experts_at(host, [f"{unit}.conv"]), granularity="block")
    gate = TokenGate(32, 3)
    gate.e.zero_()
    gate.e[0, 0] = 200.0  # by the sign of the first channel
    mixture.set_gates({unit: gate})
    height, width = size
    hidden = torch.randn(1, 32, height, width) * 0.01
    hidden[:, 0] = -1.0
    hidden[:, 0, :, : width // 2] = 1.0
    module = mixture.units[unit].module
    assert module is not None
    result = module(hidden)
    site = mixture.sites[f"{unit}.conv"]
    change = result - site.base(hidden)
    first = delta_of(site, 0, hidden)
    others = (delta_of(site, 1, hidden) + delta_of(site, 2, hidden)) / 2
    columns = result.shape[3]
    assert columns == (width + 1) // 2
    torch.testing.assert_close(change[..., 0], first[..., 0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(change[..., -1], others[..., -1], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_all_positions_of_a_network() -> None:
    """One gate for the whole network: a smaller block takes means of the places it covers."""
    host = make_host("sd15")
    sites = [*host.sites(), "unet.conv_in", "unet.conv_out"]
    mixture = attach({"unet": host.model}, experts_at(host, sites))
    mixture.set_gates(token_gates(mixture, host.run))
    site = mixture.sites["unet.mid_block.resnets.0.conv2"]
    hidden, found = shown(host, site)
    expected = site.base(hidden)
    for expert in range(3):
        weight = site.routing.weights[..., expert].reshape(2, 1, 8, 8)
        weight = functional.interpolate(weight, size=(4, 4), mode="bilinear", align_corners=False)
        expected = expected + weight * delta_of(site, expert, hidden)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    hidden, found = shown(host, mixture.sites["unet.conv_in"])
    assert not torch.allclose(found, mixture.sites["unet.conv_in"].base(hidden), atol=1e-2)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("granularity", ["network", "block", "layer", "matrix"])
def test_other_sizes_of_picture(granularity: Any, tokens: bool) -> None:
    host, _ = by_token(granularity) if tokens else gated("sd15", granularity)
    wide = Host(host.kind, host.model, "unet", {**host.inputs, "sample": torch.randn(2, 4, 10, 14)})
    assert output(wide).isfinite().all()


def test_flattened_gates_refuse_another_size() -> None:
    host, mixture = gated("sd15", "block", GateSettings(reduce="flatten"))
    assert output(host).isfinite().all()
    wide = Host(host.kind, host.model, "unet", {**host.inputs, "sample": torch.randn(2, 4, 8, 12)})
    with pytest.raises(ComposerError, match=r"64 positions, and here it has 96.*take the mean"):
        output(wide)
    mixture.toggle("ada", False)
    assert output(host).isfinite().all()
    mixture.detach()
    assert output(wide).isfinite().all()


def test_a_flattened_gate_must_know_its_tokens() -> None:
    with pytest.raises(ComposerError, match="how many tokens"):
        LearnedGate(GateSettings(reduce="flatten"), 8, [True, True])
