"""The closed-form start, measured in the written file: nearer to its teacher than the average."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from gate_training import experts_for, finished, run, training
from torch import Tensor

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.experts import Expert
from composer.fusions.gate_file import read_gates
from composer.mixture import Mixture, attach
from composer.training.gates.closed_form import RIDGE
from composer.training.gates.memory import Memory, remember

ALONE = {"ada": ("ada", "cat, ada"), "ink": ("ink", "cat in ink"), "sea": ("sea", "cat at sea")}


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@torch.no_grad()
def outputs(
    model: Model, mixture: Mixture, experts: list[Expert], memory: Memory, name: str
) -> dict[str, Tensor]:
    """What each expert's dense weights make of what one expert alone gives a site on its own
    prompts: by site, (outputs, experts)."""
    found: dict[str, Tensor] = {}

    def look(site: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            changes = [inputs[0] @ e.sites[site].dense().T for e in experts]
            found[site] = torch.stack([change.flatten().double() for change in changes], dim=1)

        return hook

    mixture.set_weights({name: 1.0})
    rows = memory.rows_of(name)
    text = torch.cat([encode_prompts(model, memory.prompts[row], None).positive for row in rows])
    handles = [
        cast(Any, module).register_forward_pre_hook(look(site))
        for site, module in mixture.sites.items()
        if site.startswith("unet.")
    ]
    model.unet(memory.latents[rows], memory.timesteps[rows], text)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("loudness", [(1.0, 1.0), (1.0, 0.5, 0.25)], ids=["alike", "unlike"])
@pytest.mark.parametrize("granularity", ["block", "matrix"])
def test_without_a_step_each_unit_is_nearer_to_each_expert_alone_than_the_average_is(
    model: Model, tmp_path: Path, granularity: Any, loudness: tuple[float, ...]
) -> None:
    """By sum_i || sum_j g_j D_j(X_i) - D_i(X_i) ||^2 / || D_i(X_i) ||^2, which the solver makes
    least together with its ridge; so both together cannot be less anywhere else."""
    names = tuple(ALONE)[: len(loudness)]
    experts = [
        dataclasses.replace(
            expert,
            sites={
                site: dataclasses.replace(factors, scale=loud * factors.scale)
                for site, factors in expert.sites.items()
            },
        )
        for expert, loud in zip(experts_for(model, tmp_path, *names), loudness, strict=True)
    ]
    config = training(
        tmp_path,
        alone={name: ALONE[name] for name in names},
        start="solved",
        steps=0,
        compose=0.0,
        rest=0.0,
        granularity=granularity,
    )
    run(model, experts, config)
    gates = read_gates(config.output).tensors
    sites = {expert.name: expert.sites for expert in experts}
    with attach(model.models, sites, granularity=granularity) as mixture:
        memory = finished(remember(model, mixture, config))  # what the training learns from
        seen = [outputs(model, mixture, experts, memory, name) for name in names]
        of_unit = {unit: mixture.units[unit].plan.sites for unit in gates}
    even = torch.full((len(names),), 1 / len(names), dtype=torch.float64)
    assert of_unit
    for unit, its_sites in of_unit.items():
        made = [torch.cat([by_site[site] for site in its_sites]) for by_site in seen]
        parts, goals = list[Tensor](), list[Tensor]()
        for index, changes in enumerate(made):
            size = changes[:, index].square().sum().sqrt()
            parts.append(changes / size)
            goals.append(changes[:, index] / size)
        left, right = torch.cat(parts), torch.cat(goals)

        def residual(g: Tensor, left: Tensor = left, right: Tensor = right) -> float:
            return float((left @ g - right).square().sum())

        def ridge(g: Tensor, left: Tensor = left) -> float:
            return RIDGE * float(left.square().sum(0) @ (g - 1).square())

        solved = gates[unit]["b"].double()
        assert residual(solved) + ridge(solved) < residual(even) + ridge(even), unit
        # the ridge draws to 1, away from even shares, and yet
        assert residual(solved) < residual(even), unit
        if len(set(loudness)) > 1:  # even shares are nearly right for LoRAs that are alike
            assert residual(solved) < 0.6 * residual(even), unit
