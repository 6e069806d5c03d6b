"""Sites against naive loops: weights by sample and by token, all kinds of layers and dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import Experts, Factors, predict, unet_inputs
from torch import Tensor, nn
from torch.nn import functional

from composer.mixture import Routing, Site, attach
from composer.mixture.sites import ExpertConv2d, ExpertLinear

RANKS = (3, 1, 5)


def random_factors(weight: Tensor, rank: int, seed: int, *, kernel: bool = True) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    out, width, *size = weight.shape
    size = size if kernel else []
    down = torch.randn(rank, width, *size, generator=generator)
    return Factors(down, torch.randn(out, rank, *[1] * len(size), generator=generator), 0.5 / rank)


def make_site(base: Any, missing: int | None = None) -> tuple[Site, list[Factors | None]]:
    factors = [
        None if expert == missing else random_factors(base.weight, rank, expert)
        for expert, rank in enumerate(RANKS)
    ]
    kind = ExpertLinear if isinstance(base, nn.Linear) else ExpertConv2d
    return kind(base, factors, Routing(len(RANKS))), factors


def dense_delta(factors: Factors, base: Any, hidden: Tensor) -> Tensor:
    """One expert's delta by its dense weight."""
    weight = factors.scale * (factors.up.flatten(1) @ factors.down.flatten(1))
    weight = weight.reshape(base.weight.shape)
    if isinstance(base, nn.Linear):
        return functional.linear(hidden, weight)
    return functional.conv2d(
        hidden,
        weight,
        None,
        base.stride,
        base.padding,
        base.dilation,  # pyright: ignore
    )


@pytest.mark.parametrize("missing", [None, 1])
@pytest.mark.parametrize(
    ("shape", "by"),
    [
        *((shape, by) for shape in [(2, 6), (2, 5, 6), (2, 4, 5, 6)] for by in ["batch", "sample"]),
        ((2, 5, 6), "token"),
    ],
)
def test_linear_equals_a_naive_loop(shape: tuple[int, ...], by: str, missing: int | None) -> None:
    torch.manual_seed(0)
    base, hidden = nn.Linear(6, 7), torch.randn(shape)
    site, factors = make_site(base, missing)
    weights = torch.randn(*{"batch": (), "sample": (2,), "token": (2, 5)}[by], len(RANKS))
    site.routing.keep(weights)
    expected = base(hidden)
    for expert, own in enumerate(factors):
        if own is not None:
            for row in range(2):
                weight = weights[..., expert]
                weight = weight if by == "batch" else weight[row]
                weight = weight[:, None] if by == "token" else weight
                expected[row] += weight * dense_delta(own, base, hidden[row])
    torch.testing.assert_close(site(hidden), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by", ["batch", "sample", "token"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": False},
        {"kernel_size": (1, 3), "padding": "same"},
        {"kernel_size": 3, "padding": "valid"},
    ],
)
def test_convolution_equals_a_naive_loop(settings: dict[str, Any], by: str) -> None:
    torch.manual_seed(0)
    base, hidden = nn.Conv2d(4, 6, **settings), torch.randn(2, 4, 8, 6)
    site, factors = make_site(base)
    expected = base(hidden)
    height, width = expected.shape[2:]
    weights = torch.randn(
        *{"batch": (), "sample": (2,), "token": (2, height * width)}[by], len(RANKS)
    )
    site.routing.keep(weights)
    for expert, own in enumerate(factors):
        for row in range(2):
            weight = weights[..., expert]
            weight = weight if by == "batch" else weight[row]
            weight = weight.reshape(height, width) if by == "token" else weight
            expected[row] += weight * dense_delta(own, base, hidden[row : row + 1])[0]
    torch.testing.assert_close(site(hidden), expected, rtol=1e-5, atol=1e-5)


def test_padding_mode_of_the_base_is_followed() -> None:
    """Seamless textures are made by switching convolutions to circular padding."""
    torch.manual_seed(0)
    base, hidden = nn.Conv2d(4, 6, 3, padding=1), torch.randn(1, 4, 8, 8)
    site, _ = make_site(base)
    base.padding_mode = "circular"
    base._reversed_padding_repeated_twice = [1, 1, 1, 1]
    shifted = site(hidden.roll(3, dims=3))
    torch.testing.assert_close(shifted, site(hidden).roll(3, dims=3), rtol=1e-5, atol=1e-5)


def test_linear_and_1x1_convolution_take_each_others_shapes() -> None:
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(4, 6, 1), nn.Linear(4, 6)
    linear.weight.data, linear.bias.data = conv.weight.data.flatten(1), conv.bias.data
    model = nn.ModuleDict({"conv": conv, "linear": linear})
    flat = random_factors(conv.weight, 3, 0, kernel=False)
    square = Factors(flat.down[..., None, None], flat.up[..., None, None], flat.scale)
    hidden = torch.randn(2, 4, 5, 5)
    with attach({"p": model}, {"a": {"p.conv": flat, "p.linear": square}}):
        one = model["conv"](hidden).flatten(2).transpose(1, 2)
        other = model["linear"](hidden.flatten(2).transpose(1, 2))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_rows_of_a_batch_have_weights_of_their_own(unet: Any, experts: Experts) -> None:
    """A batch with weights by sample equals each sample alone with its weights."""
    mixture = attach({"unet": unet}, experts)
    rows = torch.tensor([[0.8, 0.0, 0.3], [0.0, 1.0, -0.5], [0.0, 0.0, 0.0]])
    inputs = unet_inputs(batch=3)
    mixture.routings["unet"].keep(rows)
    together = predict(unet, inputs)
    for row, weights in enumerate(rows.tolist()):
        mixture.set_weights(dict(zip(mixture.names, weights, strict=True)))
        alone = predict(unet, {key: value[row : row + 1] for key, value in inputs.items()})
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [2, 5])
def test_a_sample_is_the_same_alone_and_in_a_batch(unet: Any, experts: Experts, batch: int) -> None:
    mixture = attach({"unet": unet}, experts)
    mixture.set_weights({"ada": 0.7, "ink": 0.4, "sea": 0.2})
    inputs = unet_inputs(batch)
    together = predict(unet, inputs)
    for row in range(batch):
        alone = predict(unet, {key: value[row : row + 1] for key, value in inputs.items()})
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_half_precision_hosts(
    unet: Any, experts: Experts, dtype: torch.dtype, tolerance: float, when: str
) -> None:
    """Cast before or after attaching; the weights stay float32."""
    names = {"ada": 0.801, "ink": 0.399}
    with attach({"unet": unet}, experts) as mixture:
        mixture.set_weights(names)
        exact = predict(unet)
    inputs = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in unet_inputs().items()
    }
    if when == "before":
        unet.to(dtype)
    plain_before = predict(unet.to(dtype), inputs) if when == "before" else None
    mixture = attach({"unet": unet}, experts)
    mixture.set_weights(names)
    unet.to(dtype)
    result = predict(unet, inputs)
    assert result.dtype == dtype
    assert float((result.float() - exact).abs().max() / exact.abs().max()) < tolerance
    assert mixture.routings["unet"].weights.dtype == torch.float32
    assert mixture.routings["unet"].weights.tolist() == pytest.approx([0.801, 0.399, 0.0], rel=1e-7)
    assert all(site.down.dtype == site.up.dtype == dtype for site in mixture.sites.values())
    mixture.set_weights({})
    if plain_before is not None:
        assert torch.equal(predict(unet, inputs), plain_before)


def test_autocast(unet: Any, experts: Experts) -> None:
    mixture = attach({"unet": unet}, experts)
    mixture.set_weights({"ada": 0.8, "ink": 0.4})
    exact = predict(unet)
    with torch.autocast("cpu", torch.bfloat16):
        result = predict(unet)
    assert float((result.float() - exact).abs().max() / exact.abs().max()) < 3e-2


def test_a_tiny_scale_survives_float16() -> None:
    """alpha 1 at rank 128 and a weak up factor: products below float16's normal numbers."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"one": nn.Linear(64, 64).half()})
    down, up = torch.randn(128, 64) * 0.03, torch.randn(64, 128) * 1e-3
    attach({"p": model}, {"a": {"p.one": Factors(down, up, 1 / 128)}})
    hidden = torch.randn(8, 64).half()
    delta = model["one"].delta(hidden).float()
    expected = hidden.float() @ down.T @ up.T / 128
    assert float((delta - expected).norm() / expected.norm()) < 1e-2
