"""The U-Net's objective is that of diffusers' scheduler, at zero terminal SNR."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from toybox import stage_unet
from toybox.denoising import new_scheduler
from toybox.loop import Stage
from toybox.networks import seed_torch
from toybox.render import SIZE
from toybox.stage_clip import new_clip
from toybox.stage_unet import draw_samples, look_scenes, new_unet, train_unet
from toybox.stage_vae import new_vae
from toybox.tokens import build_tokenizer
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

    latents = torch.randn(16, 16, 16, 16, generator=torch.Generator().manual_seed(5))

    def __init__(self, *_: object) -> None:
        self.renewed = 0

    def renew(self, count: int) -> None:
        self.renewed += count

    def draw(self, count: int) -> tuple[Tensor, list[Scene]]:
        return self.latents[:count], [Scene(figures=(Figure(name="cat"),), background="snow")] * 16


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[..., Any]]:
    """The losses of trainings that were begun; their U-Net is blind."""
    found: list[Callable[..., Any]] = []

    def capture(stage: Stage, model: nn.Module, _: object, loss: Callable[..., Any], **__: object):
        found.append(loss)
        return model

    monkeypatch.setattr(stage_unet, "new_unet", Blind)
    monkeypatch.setattr(stage_unet, "_Latents", Store)
    monkeypatch.setattr(stage_unet, "run_stage", capture)
    monkeypatch.setattr(stage_unet, "encode_words", lambda words, *_: torch.zeros(len(words), 2))
    return found


def begun(tmp_path: Path, batch: int) -> Blind:
    stage = Stage(name="unet", minutes=1, folder=tmp_path)
    nothing: Any = nn.Identity()
    blind: Any = train_unet(stage, nothing, nothing, nothing, batch=batch)
    return blind


def test_target_and_weights_are_those_of_the_scheduler(
    tmp_path: Path, losses: list[Callable[..., Any]]
) -> None:
    blind = begun(tmp_path, 16)
    total, figures, count = losses[0](0.5)
    noisy, t, context = blind.shown[0]
    assert count == len(context) == 16

    scheduler = new_scheduler()
    a = scheduler.alphas_cumprod[t][:, None, None, None]
    noise = (noisy - a.sqrt() * Store.latents) / (1 - a).sqrt()
    times: Any = t
    assert torch.allclose(scheduler.add_noise(Store.latents, noise, times), noisy, atol=1e-5)
    assert noise.std() == pytest.approx(1, abs=0.05)
    target = scheduler.get_velocity(Store.latents, noise, times)
    snr = a.flatten().double() / (1 - a.flatten().double())
    weights = torch.minimum(torch.ones(()), 5 / (snr + 1))
    errors = target.double().pow(2).mean((1, 2, 3))
    expected = float((weights * errors).mean())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)
    assert figures["loss"] == pytest.approx(expected, rel=1e-4)
    late = float(errors[t >= 650].mean())
    assert figures["below_1000"] == pytest.approx(late, rel=1e-4)


def test_processes_share_a_batch(
    tmp_path: Path, losses: list[Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_unet, "world", lambda: (1, 2))
    blind = begun(tmp_path, 16)
    assert losses[0](0.5)[2] == len(blind.shown[0][0]) == 8


@torch.no_grad()
def test_latents_are_renewed_with_their_scenes() -> None:
    seed_torch(0)
    data = stage_unet._Latents(new_vae(), random.Random(0), 3, "cpu")
    data.renew(2)
    first = list(data.scenes)
    data.renew(2)  # the third, and the oldest anew
    assert len(data.scenes) == 3 and data.scenes[1] == first[1] and data.scenes[0] != first[0]
    latents, scenes = data.draw(8)
    for latent, scene in zip(latents, scenes, strict=True):
        assert torch.equal(latent, data.latents[data.scenes.index(scene)])


def test_sample_grids_always_show_the_same_scenes(tmp_path: Path) -> None:
    scenes = look_scenes(24)
    assert scenes == look_scenes(24)
    assert [len(scene.figures) for scene in scenes] == [1] * 12 + [2] * 8 + [3] * 4


def test_a_grid_of_samples_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toybox.assemble import text_encoder_of

    seed_torch(0)
    tokenizer = build_tokenizer()
    encoder = text_encoder_of(new_clip(tokenizer))
    quick = stage_unet.generate
    monkeypatch.setattr(stage_unet, "generate", lambda *given: quick(*given, steps=1))
    path = tmp_path / "samples.png"
    draw_samples(new_unet(), new_vae(), tokenizer, encoder, path, count=8)
    with Image.open(path) as sheet:
        assert sheet.size == (8 * SIZE, SIZE)
