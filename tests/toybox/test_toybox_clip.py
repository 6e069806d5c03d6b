"""The CLIP that ships with the model tells the world's pictures by their captions."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from composer.diffusion.clip import Clip, own_clip
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from toybox.captions import plain_caption
from toybox.render import render
from toybox.world import Figure, Scene

ROOT = Path(__file__).parents[2]
SCENES = (
    Scene(figures=(Figure(name="fox"),), background="beach"),
    Scene(figures=(Figure(name="car", colour="blue"),), background="snow"),
    Scene(figures=(Figure(name="cat", wears="top hat"),), background="plain yellow", style="neon"),
)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(ROOT / "assets" / "toybox")


def test_no_name_means_the_models_own(model: Model) -> None:
    clip = Clip.load("", model)
    assert own_clip(model) == ROOT / "assets" / "toybox" / "clip"
    assert clip.name == "the CLIP of toybox"
    assert clip.side == model.size
    assert not any(p.requires_grad for p in clip.model.parameters())
    named = Clip.load(str(own_clip(model)), model)
    words = [plain_caption(scene) for scene in SCENES]
    assert torch.equal(named.text(words), clip.text(words))


def test_each_picture_is_nearest_to_its_own_caption(model: Model) -> None:
    clip = Clip.load("", model)
    captions = clip.text([plain_caption(scene) for scene in SCENES])
    pictures = clip.look([render(scene, random.Random(0)) for scene in SCENES])
    for vectors in (captions, pictures):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(SCENES)))
    near = pictures @ captions.T  # (pictures, captions)
    own = near.diagonal()
    others = near.masked_fill(torch.eye(len(SCENES), dtype=torch.bool), -1)
    # of those captions, and of those pictures
    assert bool((own > others.amax(1) + 0.1).all()), near
    assert bool((own > others.amax(0) + 0.1).all()), near
