"""The U-Net's objective is that of diffusers' scheduler, at zero terminal SNR."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toybox import stage_unet
from toybox.loop import Stage
from toybox.stage_unet import look_scenes, new_scheduler, train_unet
from toybox.world import Figure, Scene


class Blind(nn.Module):
    """A U-Net that always says v = 0 and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 8))
        self.bias = nn.Parameter(torch.zeros(8))
        self.shown: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, noisy: Tensor, t: Tensor, context: Tensor) -> Any:
        self.shown.append((noisy, t, context))
        return SimpleNamespace(sample=torch.zeros_like(noisy) + self.weight.sum())


class Store:
    """Always the same latents."""

    latents = torch.randn(16, 8, 16, 16, generator=torch.Generator().manual_seed(5))

    def __init__(self, *_: object) -> None:
        self.renewed = 0

    def renew(self, count: int) -> None:
        self.renewed += count

    def draw(self, count: int) -> tuple[Tensor, list[Scene]]:
        return self.latents[:count], [Scene(figures=(Figure(name="cat"),), background="snow")] * 16


def test_target_and_weights_are_those_of_the_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind, losses = Blind(), []

    def capture(stage: Stage, model: nn.Module, _: object, loss: Callable[..., Any], **__: object):
        losses.append(loss)
        return model

    monkeypatch.setattr(stage_unet, "new_unet", lambda: blind)
    monkeypatch.setattr(stage_unet, "_Latents", Store)
    monkeypatch.setattr(stage_unet, "run_stage", capture)
    monkeypatch.setattr(stage_unet, "encode_words", lambda words, *_: torch.zeros(len(words), 2))
    stage = Stage(name="unet", minutes=1, folder=tmp_path)
    train_unet(stage, nn.Identity(), None, nn.Identity(), batch=16)
    total, figures, count = losses[0](0.5)
    noisy, t, context = blind.shown[0]
    assert count == len(context) == 16

    scheduler = new_scheduler()
    a = scheduler.alphas_cumprod[t][:, None, None, None]
    noise = (noisy - a.sqrt() * Store.latents) / (1 - a).sqrt()
    assert torch.allclose(scheduler.add_noise(Store.latents, noise, t), noisy, atol=1e-5)
    assert noise.std() == pytest.approx(1, abs=0.05)
    target = scheduler.get_velocity(Store.latents, noise, t)
    snr = a.flatten().double() / (1 - a.flatten().double())
    weights = torch.minimum(torch.ones(()), 5 / (snr + 1))
    expected = (weights * target.double().pow(2).mean((1, 2, 3))).mean()
    assert float(total.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert figures["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_sample_grids_always_show_the_same_scenes() -> None:
    scenes = list(look_scenes(24))
    assert scenes == list(look_scenes(24))
    assert [len(scene.figures) for scene in scenes] == [1] * 12 + [2] * 12
