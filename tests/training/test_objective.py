"""The training objective against diffusers' own, and where it must not divide by zero."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from composer.errors import ComposerError
from composer.training.objective import Objective

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def scheduler(**settings: object) -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **settings
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("zero", [False, True])
def test_is_what_diffusers_computes(prediction: str, zero: bool) -> None:
    theirs = scheduler(prediction_type=prediction, rescale_betas_zero_snr=zero)
    ours = Objective.from_scheduler(theirs.config)
    generator = torch.Generator().manual_seed(1)
    latents, noise = torch.randn((2, 5, 4, 8, 8), generator=generator)
    timesteps = torch.tensor([0, 10, 400, 900, 999])
    torch.testing.assert_close(
        ours.noised(latents, noise, timesteps), theirs.add_noise(latents, noise, timesteps)
    )
    targets = {
        "epsilon": noise,
        "sample": latents,
        "v_prediction": theirs.get_velocity(latents, noise, timesteps),
    }
    torch.testing.assert_close(ours.target(latents, noise, timesteps), targets[prediction])
    inner = timesteps[:-1]
    snr = compute_snr(theirs, inner)
    divided_by = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    torch.testing.assert_close(
        ours.weights(inner, 5.0), snr.clamp(max=5.0) / divided_by[prediction], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_zero_terminal_snr_is_finite(prediction: str) -> None:
    config = scheduler(prediction_type=prediction, rescale_betas_zero_snr=True).config
    ours = Objective.from_scheduler(config)
    last = torch.tensor([999])
    assert ours.signal[-1] < 1e-6
    assert ours.weights(last, 5.0).isfinite().all()
    latents, noise = torch.ones(2, 1, 4, 2, 2)
    assert ours.target(latents, noise, last).isfinite().all()
    assert (ours.weights(torch.arange(1000), None) == 1).all()


def test_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ComposerError, match="flow"):
        Objective.from_scheduler({**scheduler().config, "prediction_type": "flow"})
