"""What the recipe calls of diffusers and transformers, with the types their own code leaves out."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTokenizer

Network = TypeVar("Network", bound=nn.Module)


class Posterior(Protocol):
    """The Gaussian over latents that a VAE's encoder gives; (n, channels, height, width) each."""

    mean: Tensor
    var: Tensor
    logvar: Tensor

    def sample(self) -> Tensor: ...


def seed_torch(seed: int) -> None:
    """Seed torch's own random state, on every device."""
    cast(Any, torch).manual_seed(seed)


def moved(network: Network, device: str) -> Network:
    """`network`, moved to `device` in place."""
    return cast(Any, network).to(device)


def posterior(vae: AutoencoderKL, pictures: Tensor) -> Posterior:
    """What the encoder says of pictures in -1..1."""
    return cast(Any, vae).encode(pictures).latent_dist


def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures in -1..1 → the means of their latents."""
    return posterior(vae, pictures).mean


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents → pictures, about -1..1."""
    return cast(Any, vae).decode(latents).sample


def token_limit(tokenizer: CLIPTokenizer) -> int:
    """The tokens of one prompt at most, its start and end among them."""
    return int(cast(Any, tokenizer).model_max_length)


def token_ids(tokenizer: CLIPTokenizer, words: list[str], *, padding: bool | str) -> Tensor:
    """Prompts as token numbers, (n, tokens), cut at the tokenizer's limit.

    `padding` is the tokenizer's: True pads to the longest, "max_length" to the limit.
    """
    return cast(Any, tokenizer)(
        words,
        padding=padding,
        truncation=True,
        max_length=token_limit(tokenizer),
        return_tensors="pt",
    ).input_ids
