"""The networks of the recipe at 128 pixels: sizes and starts."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from toybox.networks import decode, encode, seed_torch
from toybox_128.captions import caption, vocabulary
from toybox_128.stage_clip import labels, new_clip, start_from as clip_start_from
from toybox_128.stage_unet import new_unet, start_from as unet_start_from
from toybox_128.stage_vae import (
    FACTOR,
    LATENT_CHANNELS,
    energy_loss,
    gradient_energy,
    new_vae,
    normalise_latents,
    pictures,
    start_from,
)
from toybox_128.tokens import MAX_LENGTH, build_tokenizer
from toybox_128.world import MOST_FIGURES, random_any_scene

TOYBOX = Path(__file__).resolve().parents[2] / "assets" / "toybox"


def load_vae(folder: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder).float()


def load_unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder).float()


def load_clip(folder: Path) -> tuple[CLIPModel, dict[str, int]]:
    words = CLIPTokenizer.from_pretrained(folder).get_vocab()
    return CLIPModel.from_pretrained(folder).float(), words


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


def test_a_vae_takes_over_the_levels_next_to_the_pixels() -> None:
    vae = new_vae()
    start_from(vae, TOYBOX / "vae")
    old, own = load_vae(TOYBOX / "vae").state_dict(), vae.state_dict()
    for name, other in (
        ("encoder.conv_in.weight", "encoder.conv_in.weight"),
        ("encoder.down_blocks.1.resnets.0.conv1.weight",) * 2,
        (
            "decoder.up_blocks.3.resnets.1.conv2.weight",
            "decoder.up_blocks.2.resnets.1.conv2.weight",
        ),
        ("decoder.conv_out.bias", "decoder.conv_out.bias"),
    ):
        assert torch.equal(own[name], old[other])


def test_words_that_both_tokenizers_know_keep_their_embeddings() -> None:
    tokenizer = build_tokenizer()
    clip = new_clip(tokenizer)
    clip_start_from(clip, tokenizer, TOYBOX / "clip")
    old, words = load_clip(TOYBOX / "clip")
    own = clip.text_model.embeddings.token_embedding.weight
    before = old.text_model.embeddings.token_embedding.weight
    for word in ("fox</w>", "red</w>", "beach</w>"):
        assert torch.equal(own[tokenizer.get_vocab()[word]], before[words[word]])


def test_a_unet_takes_over_all_but_its_first_and_last_convolution() -> None:
    unet = new_unet()
    unet_start_from(unet, TOYBOX / "unet")
    old = load_unet(TOYBOX / "unet").state_dict()
    kept = [
        k
        for k, v in unet.state_dict().items()
        if v.shape == old[k].shape and torch.equal(v, old[k])
    ]
    assert set(old) - set(kept) == {"conv_in.weight", "conv_out.weight", "conv_out.bias"}
