"""Previews: exact where small, a fitted linear map where not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from composer.diffusion import preview as subject
from composer.diffusion.load import load_model
from composer.diffusion.preview import fit_linear_map, preview, to_image


def test_small_ones_are_decoded_and_large_ones_mapped(
    tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_sd)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = preview(model, latents)
    assert exact.size == (32, 32)  # two columns, two rows, the last place empty
    assert exact.crop((0, 0, 16, 16)).tobytes() == to_image(model.to_images(latents)[0]).tobytes()
    monkeypatch.setattr(subject, "DECODED_PIXELS", 0)
    assert preview(model, latents).size == (32, 32)


def test_the_map_is_nearer_to_the_decoder_than_its_mean_colour(tiny_sd: Path) -> None:
    model = load_model(tiny_sd)
    weights = fit_linear_map(model)
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(9))
    latents = functional.interpolate(noise, size=(16, 16), mode="nearest")
    colours = functional.avg_pool2d(model.to_images(latents), model.multiple).movedim(1, -1)
    mapped = latents.movedim(1, -1) @ weights[:-1] + weights[-1]
    assert (mapped - colours).square().mean() < (colours - colours.mean((0, 1, 2))).square().mean()
