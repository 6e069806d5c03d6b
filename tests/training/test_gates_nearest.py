"""The constant weights of an export: least squares, against a solver that sees every output."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_loras import experts_for
from torch import Tensor, nn
from torch.nn import functional

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.experts import Expert
from composer.mixture import GateSettings, Granularity, Site, attach
from composer.mixture.build import new_gates
from composer.training.gates.averages import RIDGE, Nearest

SETTINGS = GateSettings(activation="free", bias=True, input="placed")
MEAN = [0.7, -0.4]


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def change(expert: Expert, name: str, site: Site, hidden: Tensor) -> Tensor:
    """One expert's dense change at weight 1."""
    base: Any = site.base
    if name not in expert.sites:
        return torch.zeros_like(base(hidden))
    factors = expert.sites[name]
    dense = factors.scale * factors.up.flatten(1).float() @ factors.down.flatten(1).float()
    if isinstance(base, nn.Linear):
        return functional.linear(hidden, dense)
    kernel = dense.reshape(base.weight.shape)
    return functional.conv2d(hidden, kernel, None, base.stride, base.padding)


@pytest.mark.parametrize("granularity", ["block", "network"])
@torch.no_grad()
def test_no_other_constants_change_the_outputs_less(
    model: Model, tmp_path: Path, granularity: Granularity
) -> None:
    experts = experts_for(model, tmp_path)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, model.latent_channels, 8, 8, generator=generator)
    text = torch.cat([encode_prompts(model, p, None).positive.states for p in ("", "ada in ink")])

    def predict() -> None:
        model.unet(latents, 400, text)

    columns: dict[str, list[Tensor]] = {}
    wanted: dict[str, list[Tensor]] = {}
    sites = {expert.name: expert.sites for expert in experts}
    with attach(model.models, sites, granularity=granularity) as mixture:
        gates = new_gates(mixture, {"unet": SETTINGS}, predict, seed=0)
        mixture.set_region_maps(torch.rand(2, len(experts), 8, 8, generator=generator))
        for gate in gates.values():
            gate.e.copy_(torch.randn(gate.e.shape, generator=generator))
        mixture.set_gates(gates)
        for unit in gates:
            for name in mixture.units[unit].plan.sites:

                def hook(
                    site: Any, inputs: tuple[Any, ...], name: str = name, unit: str = unit
                ) -> None:
                    hidden, said = inputs[0][-1:], site.delta(inputs[0])[-1:]
                    each = [change(expert, name, site, hidden).flatten() for expert in experts]
                    columns.setdefault(unit, []).append(torch.stack(each, dim=1))
                    wanted.setdefault(unit, []).append(said.flatten())

                cast(Any, mixture.sites[name]).register_forward_pre_hook(hook)
        nearest = Nearest(mixture, steps=2)
        with nearest.watching(step=1, pictures=1):
            predict()
        predict()  # nobody watches: it does not count
    means = dict.fromkeys(gates, MEAN)
    found = nearest.weights(range(2), means)
    for unit in gates:
        half = len(columns[unit]) // 2
        left, right = torch.cat(columns[unit][:half]), torch.cat(wanted[unit][:half])
        ridge = (RIDGE * left.square().sum(0)).sqrt()
        left = torch.cat([left, ridge.diag()])
        right = torch.cat([right, ridge * torch.tensor(MEAN)])
        solved = cast(Any, torch.linalg).lstsq(left.double(), right.double()[:, None])
        expected = solved.solution.flatten().float()
        torch.testing.assert_close(torch.tensor(found[unit]), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(expected, torch.tensor(MEAN), atol=1e-2)
    unseen = nearest.weights(range(1), means)
    assert unseen == {unit: pytest.approx(MEAN) for unit in gates}
