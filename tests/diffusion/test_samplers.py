"""Every sampler against a denoiser that is exact, so that what is wrong is the sampler."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.request import MAX_STEPS, Request
from composer.diffusion.sample import Step, generate
from composer.diffusion.samplers import (
    SAMPLERS,
    build_scheduler,
    check_steps,
    find_sampler,
    set_steps,
)
from composer.errors import ComposerError

SPREAD = 0.2


class PerfectDenoiser(nn.Module):
    """The best prediction there is when each latent value is +1 or -1, plus noise of SPREAD.

    E[x_0 | x_t] is known in closed form; at sigma infinite it is 0 and only later does each value
    take its side, as a picture does.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.config = model.unet.config
        self.kind = model.prediction_type
        scheduler: Any = diffusers.DDIMScheduler.from_config(dict(model.scheduler_config))
        self.alpha_bar: torch.Tensor = scheduler.alphas_cumprod.double()

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        t = float(timestep)
        low, high = int(t), min(int(t) + 1, len(self.alpha_bar) - 1)
        a = torch.lerp(self.alpha_bar[low], self.alpha_bar[high], t - low)
        x = x.double()
        variance = a * SPREAD**2 + (1 - a)
        side = torch.tanh(a.sqrt() * x / variance)
        clean = side + a.sqrt() * SPREAD**2 / variance * (x - a.sqrt() * side)
        noise = (x - a.sqrt() * clean) / (1 - a).sqrt()
        if self.kind == "v_prediction":
            return ((a.sqrt() * noise - (1 - a).sqrt() * clean).float(),)
        return (noise.float(),)


@pytest.fixture(scope="module", params=["tiny_sd", "tiny_zero_snr_sd"])
def perfect(request: pytest.FixtureRequest) -> Model:
    folder: Path = request.getfixturevalue(request.param)
    model = load_model(folder)
    return dataclasses.replace(model, unet=PerfectDenoiser(model))


def final_latents(model: Model, sampler: str, steps: int) -> torch.Tensor:
    asked = Request(seed=1, steps=steps, cfg_scale=1, sampler=sampler, width=32, height=32)
    events = [event for event in generate(model, asked) if isinstance(event, Step)]
    return events[-1].latents


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [12, 30])
def test_every_sampler_finds_the_data(perfect: Model, sampler: str, steps: int) -> None:
    lost = (final_latents(perfect, sampler, steps).abs() - 1).abs() > 3 * SPREAD
    assert lost.float().mean() < 0.06


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_stay_finite_and_bounded(perfect: Model, sampler: str, steps: int) -> None:
    assert final_latents(perfect, sampler, steps).abs().max() < 8


@pytest.mark.parametrize("sampler", ["DDIM", "DPM++ 2M Karras", "PNDM"])
def test_the_most_steps_there_may_be(perfect: Model, sampler: str) -> None:
    assert final_latents(perfect, sampler, MAX_STEPS).abs().max() < 8


@pytest.mark.parametrize(
    ("spacing", "most"), [("trailing", 1000), ("linspace", 1000), ("leading", 999)]
)
def test_no_more_steps_than_the_schedule_has(spacing: str, most: int) -> None:
    """The most there may be all lie within the schedule; one more is refused."""
    config = {"num_train_timesteps": 1000, "timestep_spacing": spacing, "steps_offset": 1}
    scheduler = build_scheduler("DDIM", config)
    set_steps(scheduler, most, "cpu")
    assert 0 <= int(scheduler.timesteps.min()) < int(scheduler.timesteps.max()) < 1000
    refused = rf"{most + 1} steps are more than the {most} of the model's noise schedule"
    with pytest.raises(ComposerError, match=refused):
        set_steps(scheduler, most + 1, "cpu")
    with pytest.raises(ComposerError, match=refused):
        check_steps(most + 1, config)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_models_own_schedule_is_kept(sampler: str, tiny_zero_snr_sd: Path) -> None:
    config: Any = diffusers.DDIMScheduler.load_config(tiny_zero_snr_sd / "scheduler")
    scheduler = build_scheduler(sampler, config)
    assert type(scheduler).__name__ == SAMPLERS[sampler].scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) in (998, 999)
    if "timestep_spacing" in scheduler.config:
        assert scheduler.config.timestep_spacing == "trailing"
    alpha_bar = diffusers.DDIMScheduler.from_config(config).alphas_cumprod.sqrt()
    assert (scheduler.alphas_cumprod.sqrt() - alpha_bar).abs().max() < 0.011


def test_an_unknown_sampler_suggests_close_ones() -> None:
    with pytest.raises(ComposerError, match=r"'dpm 2m'.*Did you mean.*'DPM\+\+ 2M'"):
        find_sampler("dpm 2m")
    with pytest.raises(ComposerError, match=r"Choose one of them: DPM"):
        find_sampler("qqqq")
