"""The networks of the recipe at 128 pixels: sizes, starts, precision."""

from __future__ import annotations

import random

import pytest
import torch

from toybox.networks import decode, encode, seed_torch
from toybox_128.captions import caption, vocabulary
from toybox_128.precision import bfloat16_is_faster
from toybox_128.stage_clip import labels
from toybox_128.stage_unet import new_unet
from toybox_128.stage_vae import (
    FACTOR,
    LATENT_CHANNELS,
    gradient_energy,
    new_vae,
    normalise_latents,
    pictures,
)
from toybox_128.tokens import MAX_LENGTH, build_tokenizer
from toybox_128.world import MOST_FIGURES, random_any_scene


def test_latents_have_the_grid_that_the_unet_is_made_for() -> None:
    x = pictures(random.Random(0), 1)
    z = encode(new_vae(), x)
    config = new_unet().config
    assert z.shape == (1, LATENT_CHANNELS, config["sample_size"], config["sample_size"])
    assert config["sample_size"] * FACTOR == x.shape[-1]


def test_normalised_latents_have_mean_0_and_deviation_1_and_decode_as_before() -> None:
    seed_torch(0)
    vae = new_vae()
    x = pictures(random.Random(5), 4, base=1.0)
    before = decode(vae, encode(vae, x))
    normalise_latents(vae, count=32)
    z = encode(vae, pictures(random.Random("latents"), 32, base=1.0))
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(LATENT_CHANNELS), atol=0.25)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(LATENT_CHANNELS), atol=0.25)
    assert torch.allclose(decode(vae, encode(vae, x)), before, atol=1e-3)


def test_a_blurred_picture_has_less_gradient_energy() -> None:
    x = pictures(random.Random(1), 2)
    soft = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    assert (gradient_energy(soft) < 0.7 * gradient_energy(x)).all()


def test_every_word_is_one_token_and_captions_fit() -> None:
    tokenizer = build_tokenizer()
    for word in filter(str.isalpha, vocabulary()):
        assert len(tokenizer(word).input_ids) == 3, word
    rng = random.Random(2)
    longest = max(len(tokenizer(caption(random_any_scene(rng), rng)).input_ids) for _ in range(500))
    assert longest <= MAX_LENGTH


def test_labels_say_where_no_figure_stands() -> None:
    rng = random.Random(3)
    scenes = [random_any_scene(rng) for _ in range(40)]
    found = labels(scenes)
    for index, place in enumerate(("first", "second", "third")[:MOST_FIGURES]):
        missing = torch.tensor([len(scene.figures) <= index for scene in scenes])
        assert torch.equal(found[place] == 0, missing)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the CPU")
def test_the_choice_of_precision_does_not_depend_on_where_it_is_asked() -> None:
    bfloat16_is_faster.cache_clear()
    with torch.no_grad():
        assert isinstance(bfloat16_is_faster(), bool)
