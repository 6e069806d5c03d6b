"""Where trigger words act: the words that are left out, what is asked, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_loras import experts_for
from torch import Tensor

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.regions import (
    EVERY,
    REACHES,
    RegionMaps,
    Regions,
    Trigger,
    regions_of,
)
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.evaluation.sampling import Sampling, Shot, sample
from composer.experts.triggers import without_words
from composer.fusions.regions import region_gates
from composer.mixture import Mixture, Reach, attach, region_maps

ADA = Trigger(words="ada", role="character")
INK = Trigger(words="in ink", role="clothing")
SEA = Trigger(words="", role="character")  # nobody knows its words


@pytest.mark.parametrize(
    ("prompt", "trigger", "left"),
    [
        ("a cat in Ink style", "in ink", "a cat style"),
        ("ada and a cat", "ada", "and a cat"),
        ("adagio, adabot", "ada", None),
        ("a cat, in  ink , at night", "in ink", "a cat, at night"),
        ("a fox, blue scarf", "zibo fox, blue scarf", "a fox"),
        ("blue, ada, red", "ada", "blue, red"),
        ("ada", "ada", ""),
        ("(ada) [x] a+b", "a+b", "(ada) [x]"),
        ("a cat", "", None),
    ],
)
def test_the_prompt_without_the_words(prompt: str, trigger: str, left: str | None) -> None:
    assert without_words(prompt, trigger) == left


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.fixture
def mixture(model: Model, tmp_path: Path) -> Iterator[Mixture]:
    experts = experts_for(model, tmp_path, "ada", "ink", "sea")
    with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as mixture:
        yield mixture


def regions(model: Model, mixture: Mixture) -> Regions:
    return Regions(model, mixture, {"ada": ADA, "ink": INK, "sea": SEA})


def latents(model: Model, pictures: int, seed: int = 0) -> Tensor:
    side = model.size // model.multiple
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(pictures, model.latent_channels, side, side, generator=generator)


@torch.no_grad()
def test_maps_follow_from_two_predictions_each(model: Model, mixture: Mixture) -> None:
    noisy, timestep = latents(model, 2), torch.tensor(500)
    prompts = ("ada in ink", "a cat in ink")
    maps = regions(model, mixture).of(prompts)
    assert maps.called.tolist() == [[True, False], [True, True], [True, True]]
    changes = torch.zeros(3, *noisy.shape)
    for index, (trigger, left) in enumerate(((ADA, ("in ink", None)), (INK, ("ada", "a cat")))):
        assert trigger.reaches() == REACHES[trigger.role]
        for row, (prompt, less) in enumerate(zip(prompts, left, strict=True)):
            if less is None:
                continue
            both = [
                model.unet(
                    noisy[row : row + 1],
                    timestep,
                    encoder_hidden_states=encode_prompts(model, words, None).positive.states,
                ).sample
                for words in (prompt, less)
            ]
            changes[index, row] = (both[0] - both[1])[0]
    wanted = region_maps(changes, maps.called, [ADA.reaches(), INK.reaches(), Reach(local=False)])
    found = maps.maps(noisy, timestep)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert bool((found[:, 2] == 1).all()), "an expert without words acts everywhere"


def test_gates_do_not_change_the_maps(model: Model, mixture: Mixture) -> None:
    """The maps are those of the plain sum, whatever the gates were told before."""
    maps = regions(model, mixture).of(("ada in ink",))
    noisy, timestep = latents(model, 1), torch.tensor(300)
    before = maps.maps(noisy, timestep)
    mixture.set_gates(region_gates(mixture, dict.fromkeys(mixture.names, 1.0)))
    mixture.set_region_maps(torch.rand(1, 3, 4, 4))
    torch.testing.assert_close(maps.maps(noisy, timestep), before, rtol=1e-5, atol=1e-6)


def test_it_is_asked_at_every_third_step(model: Model, mixture: Mixture) -> None:
    maps = regions(model, mixture).of(("ada in ink",))
    asked: list[int] = []

    class Counted(RegionMaps):
        def maps(self, noisy: Tensor, timestep: Tensor) -> Tensor:
            asked.append(int(timestep))
            return torch.ones(1, 3, 1, 1)

    maps.__class__ = Counted
    for step in range(7):
        maps.update(latents(model, 1), torch.tensor(step), step)
    assert asked == [step for step in range(7) if step % EVERY == 0]


def test_who_is_switched_off_is_not_asked(model: Model, mixture: Mixture) -> None:
    mixture.toggle("ink", False)
    maps = regions(model, mixture).of(("ada in ink",))
    assert maps.called.flatten().tolist() == [True, False, True]
    assert maps.maps(latents(model, 1), torch.tensor(10))[0, 1].abs().max() == 0


def test_nobody_hears_them_without_such_gates(model: Model, mixture: Mixture) -> None:
    assert regions_of(model, mixture, ()) is None


def picture_of(model: Model, request: Request, finder: Regions | None) -> Image.Image:
    pieces = generate(model, request, regions=finder)
    return next(piece.image for piece in pieces if isinstance(piece, Picture))


def test_pictures_alone_and_in_a_batch(model: Model, mixture: Mixture) -> None:
    """The page's sampler and the benchmarks' make one picture, which the maps have changed."""
    mixture.set_gates(region_gates(mixture, dict.fromkeys(mixture.names, 1.0)))
    finder = regions(model, mixture)
    request = Request(prompt="ada in ink", seed=5, steps=4, cfg_scale=3.0, sampler="DDIM")
    alone = picture_of(model, request, finder)
    mixture.set_region_maps(None)
    plain = picture_of(model, request, None)
    shots = [Shot(prompt="a cat", seed=4), Shot(prompt="ada in ink", seed=5)]
    batch = list(sample(model, shots, Sampling(steps=4), regions=finder))

    def pixels(image: Image.Image) -> Tensor:
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float()

    assert (pixels(alone) - pixels(batch[1])).abs().max() <= 2
    assert (pixels(alone) - pixels(plain)).abs().max() > 2
