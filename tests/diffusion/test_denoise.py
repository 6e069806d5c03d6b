"""The one loop over a sampler's steps, guidance, and the clean latents of a prediction."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from composer.diffusion.conditioning import Text
from composer.diffusion.denoise import denoise, draw_noise, guide, predict, scheduler_for, to_clean
from composer.diffusion.load import load_model

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_clean_latents_invert_the_forward_process_at_every_timestep(kind: str) -> None:
    alpha_bar = torch.linspace(0.99, 0.01, 10)
    scheduler = SimpleNamespace(
        alphas_cumprod=alpha_bar, config=SimpleNamespace(prediction_type=kind)
    )
    clean, noise = torch.randn(2, 4), torch.randn(2, 4)
    rows = torch.tensor([2, 6])
    for timestep in (torch.tensor(6), torch.tensor(5.7), rows):
        a = alpha_bar[timestep.round().long()].reshape(-1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        output = {
            "epsilon": noise,
            "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * clean,
            "sample": clean,
        }[kind]
        torch.testing.assert_close(to_clean(scheduler, output, timestep, noisy), clean)


def test_fractional_timesteps_beyond_either_end_take_that_end() -> None:
    scheduler = SimpleNamespace(
        alphas_cumprod=torch.tensor([0.81, 0.25]), config=SimpleNamespace(prediction_type="epsilon")
    )
    noisy, nothing = torch.ones(1, 1), torch.zeros(1, 1)
    for timestep, expected in ((-0.6, 1 / 0.9), (1.9, 2.0)):
        found = to_clean(scheduler, nothing, torch.tensor(timestep), noisy)
        torch.testing.assert_close(found, torch.tensor([[expected]]))


def test_guidance_moves_away_from_the_prediction_without_the_prompt(tiny_sd: Path) -> None:
    model = load_model(tiny_sd)
    shape = (2, model.latent_channels, 8, 8)
    noisy, timesteps = torch.randn(shape), torch.tensor([900, 40])
    text = Text(states=torch.randn(4, model.token_limit, model.cross_attention_dim))
    with torch.no_grad():
        without, with_prompt = (
            predict(model, noisy, timesteps, text[rows]) for rows in (slice(2), slice(2, 4))
        )
        both = predict(model, noisy, timesteps, text, 3.0)
        plain = predict(model, noisy, timesteps, text, 1.0)
    torch.testing.assert_close(both, 3 * with_prompt - 2 * without)
    torch.testing.assert_close(plain, with_prompt)
    assert torch.equal(guide(without, with_prompt, 0.0), without)


def test_each_step_is_told_as_it_was_made_and_takes_no_gradient(tiny_sd: Path) -> None:
    model = load_model(tiny_sd)
    scheduler = scheduler_for(model, "Euler", 3)
    noise, _ = draw_noise([1, 2], (model.latent_channels, 8, 8))
    assert torch.equal(noise[1:], draw_noise([2], (model.latent_channels, 8, 8))[0])
    weight, asked = torch.ones((), requires_grad=True), list[int]()

    def half(noisy: Tensor, timestep: Tensor, index: int) -> Tensor:
        asked.append(index)
        return noisy * weight / 2

    before = noise * scheduler.init_noise_sigma
    for step in denoise(scheduler, noise, half):
        assert torch.is_grad_enabled()  # whoever iterates has their own
        assert asked == list(range(step.index + 1)) and not step.latents.requires_grad
        assert torch.equal(step.output, step.noisy / 2)
        # Euler sees the latents scaled down to variance 1
        assert torch.allclose(step.noisy / step.noisy.std(), before / before.std(), atol=1e-5)
        before = step.latents
    assert asked == [0, 1, 2]


def test_no_other_code_steps_a_sampler_or_guides() -> None:
    for room in ("composer", "toybox", "benchmarks"):
        for path in (ROOT / room).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            if path != ROOT / "composer/diffusion/denoise.py":
                assert "scheduler.step(" not in source, path
                assert "* (with_prompt - without)" not in source, path
