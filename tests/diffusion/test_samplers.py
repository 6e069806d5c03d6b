"""Every sampler against a denoiser that is exact, so that what is wrong is the sampler."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import nn

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.request import MAX_STEPS, Request
from composer.diffusion.sample import Step, generate
from composer.diffusion.samplers import (
    AUTOMATIC,
    SAMPLERS,
    SCHEDULES,
    build_scheduler,
    check_steps,
    find_sampler,
    set_steps,
    split_sampler,
)
from composer.errors import ComposerError

SPREAD = 0.2
PAIRS = [
    (sampler.name, schedule)
    for sampler in SAMPLERS.values()
    for schedule in (AUTOMATIC, *sampler.schedules)
]


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


def final_latents(model: Model, sampler: str, schedule: str, steps: int) -> torch.Tensor:
    asked = Request(
        seed=1, steps=steps, cfg_scale=1, sampler=sampler, schedule=schedule, width=32, height=32
    )
    events = [event for event in generate(model, asked) if isinstance(event, Step)]
    return events[-1].latents


OWN = [(sampler, AUTOMATIC) for sampler in SAMPLERS]
KARRAS = [pair for pair in PAIRS if pair[1] == "Karras"]


@pytest.mark.parametrize(("sampler", "schedule"), [*OWN, *KARRAS])
@pytest.mark.parametrize("steps", [12, 30])
def test_every_sampler_finds_the_data(
    perfect: Model, sampler: str, schedule: str, steps: int
) -> None:
    lost = (final_latents(perfect, sampler, schedule, steps).abs() - 1).abs() > 3 * SPREAD
    assert lost.float().mean() < 0.06


@pytest.mark.parametrize(("sampler", "schedule"), OWN)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_stay_finite_and_bounded(
    perfect: Model, sampler: str, schedule: str, steps: int
) -> None:
    assert final_latents(perfect, sampler, schedule, steps).abs().max() < 8


@pytest.mark.parametrize(("sampler", "schedule"), [p for p in PAIRS if p not in OWN])
def test_schedules_go_through_with_any_model(perfect: Model, sampler: str, schedule: str) -> None:
    assert final_latents(perfect, sampler, schedule, 4).isfinite().all()


@pytest.mark.parametrize(
    ("sampler", "schedule"), [("DDIM", AUTOMATIC), ("DPM++ 2M", "Karras"), ("PNDM", AUTOMATIC)]
)
def test_the_most_steps_there_may_be(perfect: Model, sampler: str, schedule: str) -> None:
    assert final_latents(perfect, sampler, schedule, MAX_STEPS).abs().max() < 8


SIGMAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
SIGMAS = (1 / (1 - SIGMAS).cumprod(0) - 1).sqrt()
GREATEST, LEAST = float(SIGMAS[-1]), float(SIGMAS[0])


def sigma_at(timesteps: Any) -> Any:
    known = SIGMAS.log().numpy()
    return np.exp(np.interp(timesteps, np.arange(1000), known))


def by_a1111(schedule: str, n: int) -> Any:
    """As A1111's sd_schedulers.py and k-diffusion lay out n sigmas, the 0 at the end left out."""
    ramp = np.linspace(0, 1, n)
    if schedule == "Karras":
        roots = GREATEST ** (1 / 7), LEAST ** (1 / 7)
        return (roots[0] + ramp * (roots[1] - roots[0])) ** 7
    if schedule == "Exponential":
        return np.exp(np.linspace(np.log(GREATEST), np.log(LEAST), n))
    if schedule == "Beta":
        return LEAST + beta.ppf(1 - ramp, 0.6, 0.6) * (GREATEST - LEAST)
    if schedule == "Simple":
        return SIGMAS.numpy()[[-(1 + int(i * 1000 / n)) for i in range(n)]]
    end = np.linspace(999, 0, n + 1)[:-1] if schedule == "SGM Uniform" else np.linspace(999, 0, n)
    return sigma_at(end)


@pytest.mark.parametrize(("sampler", "schedule"), [p for p in PAIRS if p[1] != AUTOMATIC])
def test_schedules_are_those_of_a1111(sampler: str, schedule: str) -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    config |= {"num_train_timesteps": 1000, "timestep_spacing": "leading", "steps_offset": 1}
    scheduler = build_scheduler(sampler, config, schedule)
    set_steps(scheduler, 10, "cpu")
    found = [float(sigma) for sigma in scheduler.sigmas if sigma > 0]
    found = np.array([s for s, before in zip(found, [0.0, *found], strict=False) if s != before])
    expected = by_a1111(schedule, 10)
    # One timestep more or less is what rounding to whole timesteps makes.
    near = sigma_at(np.interp(np.log(expected), SIGMAS.log().numpy(), np.arange(1000)) - 1.01)
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= np.abs(expected - near) + 1e-4).all()
    assert len(scheduler.timesteps) in (10, 19)
    assert float(scheduler.timesteps[0]) >= 998


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


@pytest.mark.parametrize("written", [{}, {"clip_sample": True}])
def test_ddim_does_not_clip_latents(written: dict[str, bool]) -> None:
    """DDIM's own default clips; a config that another class has left without it says nothing."""
    config = {"num_train_timesteps": 1000, "_use_default_values": ["clip_sample"], **written}
    assert build_scheduler("DDIM", config).config.clip_sample is False


@pytest.mark.parametrize("sampler", ["DDIM", "Euler", "PNDM"])
def test_an_offset_that_the_pipeline_set_is_kept(sampler: str) -> None:
    left_out = {"_use_default_values": ["steps_offset", "set_alpha_to_one"]}
    config = {"num_train_timesteps": 1000, "steps_offset": 1, "timestep_spacing": "leading"}
    scheduler = build_scheduler(sampler, config | left_out)
    set_steps(scheduler, 10, "cpu")
    assert scheduler.config.steps_offset == 1 and int(scheduler.timesteps[-1]) == 1


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
    with pytest.raises(ComposerError, match=r"'sgm uniform'.*Did you mean 'SGM Uniform'"):
        find_sampler("Euler", "sgm uniform")
    with pytest.raises(ComposerError, match=r"'DDIM' cannot follow .*'Beta'.*: Automatic\."):
        find_sampler("DDIM", "Beta")


def test_a_name_with_its_schedule_is_taken_apart() -> None:
    assert split_sampler("DPM++ 2M SDE Karras") == ("DPM++ 2M SDE", "Karras")
    assert split_sampler("Euler a Exponential", "Exponential") == ("Euler a", "Exponential")
    assert split_sampler("Restart Karras") == ("Restart Karras", AUTOMATIC)
    asked = Request(sampler="DPM2 a Karras")
    assert (asked.sampler, asked.schedule) == ("DPM2 a", "Karras")
    assert Request.from_json(asked.to_json()) == asked
    with pytest.raises(ComposerError, match="no sampler 'Euler Karras'"):
        Request(sampler="Euler Karras", schedule="Beta")


def test_every_schedule_has_a_sampler() -> None:
    assert {schedule for _, schedule in PAIRS} == set(SCHEDULES)
    assert all(s.usual in (AUTOMATIC, *s.schedules) for s in SAMPLERS.values())
