"""The closed-form start of gates, against least squares on the stacked outputs of the experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.experts import LowRank
from composer.mixture import Mixture, attach
from composer.training.gates.closed_form import RIDGE, Products, solve

RANKS = {"ada": 4, "ink": 2, "sea": 3}
T = "down_blocks.0.attentions.0"
SITES = (
    f"unet.{T}.proj_in",  # a convolution of 1 x 1
    f"unet.{T}.transformer_blocks.0.attn2.to_k",  # which sees words
    f"unet.{T}.transformer_blocks.0.ff.net.2",
    "unet.down_blocks.0.resnets.0.conv1",
    "unet.down_blocks.0.resnets.0.time_emb_proj",  # which has no tokens
    "unet.down_blocks.0.downsamplers.0.conv",  # which strides
    "unet.up_blocks.1.resnets.0.conv_shortcut",
)

Experts = dict[str, dict[str, LowRank]]


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def experts_for(model: Model) -> Experts:
    """Random factors, of another strength for each expert."""
    generator, made = torch.Generator().manual_seed(0), Experts()
    for loud, (name, rank) in enumerate(RANKS.items(), start=1):
        made[name] = {}
        for site in SITES:
            out, *into = model.unet.get_submodule(site.removeprefix("unet.")).weight.shape
            down = torch.randn(rank, *into, generator=generator) / into[0] ** 0.5
            up = torch.randn(out, rank, *[1] * (len(into) - 1), generator=generator)
            made[name][site] = LowRank(down=down, up=up, scale=0.2 * loud)
    return made


def alone(model: Model, mixture: Mixture, name: str) -> Callable[[], Any]:
    """The model once, with one expert speaking, on prompts that are its own."""
    generator = torch.Generator().manual_seed(mixture.names.index(name))
    latents = torch.randn(2, model.latent_channels, 8, 8, generator=generator)
    text = torch.randn(2, 5, model.cross_attention_dim, generator=generator)

    def run() -> None:
        mixture.set_weights({name: 1.0})
        model.unet(latents, torch.tensor([700, 90]), text)

    return run


@torch.no_grad()
def seen_by_hand(mixture: Mixture, experts: Experts, run: Callable[[], Any]) -> dict[str, Tensor]:
    """What each expert's own weights make of what each site sees: by site, (outputs, experts)."""
    found: dict[str, Tensor] = {}
    handles: list[Any] = []

    def look(name: str, base: Any) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            changes: list[Tensor] = []
            for expert in mixture.names:
                change = torch.zeros_like(output)
                if name in experts[expert]:
                    weight = experts[expert][name].dense()
                    if weight.ndim == 2:
                        change = inputs[0] @ weight.T
                    else:
                        conv = torch.nn.functional.conv2d
                        change = conv(inputs[0], weight, None, base.stride, base.padding)
                assert change.shape == output.shape
                changes.append(change.flatten().double())
            found[name] = torch.stack(changes, dim=1)

        return hook

    for name, site in mixture.sites.items():
        hook = look(name, site.base)
        handles.append(cast(Any, site).register_forward_hook(hook))
    run()
    for handle in handles:
        handle.remove()
    return found


def least_squares(names: tuple[str, ...], by_expert: dict[str, Tensor], ridge: float) -> Tensor:
    """min sum_i || D(X_i) g - D_i(X_i) ||^2 / || D_i(X_i) ||^2 + ridge sum_j s_j (g_j - 1)^2, where
    s_j is how much D_j counts in the first sum. by_expert: (outputs, experts) of each."""
    rows: list[Tensor] = []
    right: list[Tensor] = []
    for index, name in enumerate(names):
        size = by_expert[name][:, index].norm()
        rows.append(by_expert[name] / size)
        right.append(by_expert[name][:, index] / size)
    pull = ridge**0.5 * torch.cat(rows).norm(dim=0)
    system = torch.cat([*rows, pull.diag()])
    return torch.linalg.lstsq(system, torch.cat([*right, pull])).solution


@pytest.mark.parametrize("ridge", [RIDGE, 1e-4, 1.0])
@pytest.mark.parametrize("granularity", ["network", "block", "matrix"])
def test_the_weights_are_those_of_least_squares(
    model: Model, granularity: Any, ridge: float
) -> None:
    experts = experts_for(model)
    with attach({"unet": model.unet}, experts, granularity=granularity) as mixture:
        counted: dict[str, Products] = {}
        seen: dict[str, dict[str, Tensor]] = {}
        for name in mixture.names:
            run = alone(model, mixture, name)
            counted[name] = Products(mixture)
            counted[name].watch(run)
            seen[name] = seen_by_hand(mixture, experts, run)
        found = solve(mixture, counted, ridge=ridge)
        assert found.keys() == mixture.units.keys()
        for unit, weights in found.items():
            sites = mixture.units[unit].plan.sites
            whole = {n: torch.cat([seen[n][site] for site in sites]) for n in mixture.names}
            wanted = least_squares(mixture.names, whole, ridge)
            torch.testing.assert_close(
                torch.tensor(weights), wanted.float(), rtol=1e-3, atol=1e-4, msg=unit
            )
        spread = torch.tensor(list(found.values()))
        assert float((spread - 1).abs().max()) > 0.05 and float(spread.std()) > 0.01


def test_an_expert_that_is_not_in_a_unit_is_left_at_one(model: Model) -> None:
    experts = experts_for(model)
    gone = SITES[3]
    del experts["ink"][gone]
    with attach({"unet": model.unet}, experts, granularity="matrix") as mixture:
        counted = {name: Products(mixture) for name in mixture.names}
        for name, products in counted.items():
            products.watch(alone(model, mixture, name))
        found = solve(mixture, counted)
        # for the others it is as if it had not been asked
        of_two = {name: counted[name] for name in ("ada", "sea")}
        assert found[gone] == pytest.approx(solve(mixture, of_two)[gone])
    assert found[gone][1] == pytest.approx(1.0)
    assert all(found[site][1] < 0.9 for site in SITES if site != gone)
