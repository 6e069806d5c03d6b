"""The networks of the recipe at 128 pixels: sizes, starts, and what they are asked."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from toybox.byte_pairs import clip_tokenizer
from toybox.captions import caption, vocabulary
from toybox.networks import decode, encode, posterior, seed_torch
from toybox.stage_clip import labels, new_clip, start_from as start_from_clip, worded
from toybox.stage_unet import new_unet, start_from as start_from_unet
from toybox.stage_vae import (
    FACTOR,
    LATENT_CHANNELS,
    energy_loss,
    gradient_energy,
    new_vae,
    normalise_latents,
    pictures,
    start_from,
)
from toybox.tokens import MAX_LENGTH, build_tokenizer
from toybox.world import CHARACTERS, MOST_FIGURES, Figure, Scene, random_any_scene


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
    assert posterior(vae, x).var.sqrt().max() < 0.003  # whoever samples is given the means
    assert vae.config["scaling_factor"] == 1.0


def test_a_blurred_picture_has_less_gradient_energy() -> None:
    x = pictures(random.Random(1), 2)
    soft = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    assert (gradient_energy(soft) < 0.7 * gradient_energy(x)).all()
    shifted = x.roll(1, -1)  # as crisp, and nearly in its place
    assert energy_loss(shifted, x) < 0.5 * energy_loss(soft, x)


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


def test_the_clip_never_reads_a_characters_name() -> None:
    rng = random.Random(4)
    known, names = set(vocabulary()), set[str]()
    for name, kind in CHARACTERS.items():
        scene = Scene(figures=(Figure(name=name), Figure(name="car")), background="snow")
        said = [worded(scene, rng) for _ in range(40)]
        assert all(name not in words.replace(",", "").split() and kind in words for words in said)
        names |= {word.strip(",") for words in said for word in words.split()} - known
    assert len(names) > 50, "made-up names"


def test_a_vae_takes_over_the_levels_next_to_the_pixels(tmp_path: Path) -> None:
    config = dict(new_vae().config)
    smaller = {
        "down_block_types": config["down_block_types"][1:],
        "up_block_types": config["up_block_types"][1:],
        "block_out_channels": config["block_out_channels"][:-1],
        "latent_channels": 8,
    }
    earlier = AutoencoderKL(**{k: v for k, v in (config | smaller).items() if k[0] != "_"})
    earlier.save_pretrained(tmp_path)
    vae = new_vae()
    start_from(vae, tmp_path)
    old, own = earlier.state_dict(), vae.state_dict()
    for name, other in (
        ("encoder.conv_in.weight",) * 2,
        ("encoder.down_blocks.1.resnets.0.conv1.weight",) * 2,
        (
            "decoder.up_blocks.3.resnets.1.conv2.weight",
            "decoder.up_blocks.2.resnets.1.conv2.weight",
        ),
        ("decoder.conv_out.bias",) * 2,
    ):
        assert torch.equal(own[name], old[other])


def test_words_that_both_tokenizers_know_keep_their_embeddings(tmp_path: Path) -> None:
    before = clip_tokenizer(["fox", "red", "beach", "wolf"], 32)
    tokenizer = build_tokenizer()
    earlier = new_clip(before)
    config = earlier.config
    # half as large, in as many patches
    config.vision_config.image_size //= 2
    config.vision_config.patch_size //= 2
    earlier = type(earlier)(config)
    earlier.save_pretrained(tmp_path)
    before.save_pretrained(tmp_path)
    clip = new_clip(tokenizer)
    start_from_clip(clip, tokenizer, tmp_path)
    old, own = earlier.state_dict(), clip.state_dict()
    words = "text_model.embeddings.token_embedding.weight"
    for word in ("fox</w>", "red</w>", "beach</w>"):
        there, here = before.get_vocab()[word], tokenizer.get_vocab()[word]
        assert torch.equal(own[words][here], old[words][there])
    patches = "vision_model.embeddings.patch_embedding.weight"
    # a patch of one colour is seen as it was
    assert torch.allclose(own[patches].sum((2, 3)), old[patches].sum((2, 3)), atol=1e-4)
    for name in ("visual_projection.weight", "text_model.encoder.layers.3.mlp.fc1.weight"):
        assert torch.equal(own[name], old[name])


def test_a_unet_for_other_latents_gives_all_but_its_first_and_last_convolution(
    tmp_path: Path,
) -> None:
    changed = {"conv_in.weight", "conv_out.weight", "conv_out.bias"}
    for channels, left in ((8, changed), (LATENT_CHANNELS, set[str]())):
        config = dict(new_unet().config) | {"in_channels": channels, "out_channels": channels}
        earlier = UNet2DConditionModel(**{k: v for k, v in config.items() if k[0] != "_"})
        earlier.save_pretrained(tmp_path / str(channels))
        old, unet = earlier.state_dict(), new_unet()
        start_from_unet(unet, tmp_path / str(channels))
        own = unet.state_dict()
        assert {k for k in old if not torch.equal(own[k], old[k])} == left
