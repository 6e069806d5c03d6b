"""A loaded Stable Diffusion: its parts, and the sizes that follow from their configs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from composer.errors import ComposerError
from composer.families import Family


@dataclass(frozen=True, kw_only=True, eq=False)
class TextEncoder:
    """A text encoder of transformers, and the tokenizer it was trained with."""

    network: Any
    tokenizer: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """The parts of a Stable Diffusion pipeline on one device.

    The parts are the ordinary classes of diffusers and transformers. ``unet`` and ``encoders``,
    which are named as in ``family``, have ``dtype``; the ``vae`` is always float32, because in
    float16 it overflows to black pictures. ``scheduler_config`` is the noise schedule the model was
    trained with. ``zero_negative``: an empty negative prompt is not read by the text encoders, but
    is all zeros, as most SDXL models ask for. ``vae_name`` and ``vae_weights``, its files, are of a
    VAE that was given in place of the model's. ``is_offloaded``: its networks are on ``device``
    only while they run.
    """

    name: str
    path: Path
    weights: tuple[Path, ...]
    family: Family
    unet: Any
    vae: Any
    encoders: Mapping[str, TextEncoder]
    scheduler_config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    zero_negative: bool = False
    vae_name: str = ""
    vae_weights: tuple[Path, ...] = ()
    is_offloaded: bool = False

    def __post_init__(self) -> None:
        widths = [int(e.network.config.hidden_size) for e in self.encoders.values()]
        expects, gives = self.cross_attention_dim, sum(widths)
        if expects != gives:
            raise ComposerError(
                f"{self.name}: the U-Net reads text vectors of {expects} numbers, but the text "
                f"{'encoder gives' if len(widths) == 1 else 'encoders give'} {gives}. The folder "
                "mixes parts of two models: download it again."
            )
        if self.latent_channels != self.vae.config.latent_channels:
            raise ComposerError(
                f"{self.name}: the U-Net reads {self.latent_channels} channels, but the VAE makes "
                f"{self.vae.config.latent_channels}. Inpainting and depth models cannot be used: "
                "choose a text-to-image one."
            )

    @property
    def models(self) -> dict[str, nn.Module]:
        """The parts that LoRAs change, by the prefix of their sites."""
        return {"unet": self.unet, **{p: e.network for p, e in self.encoders.items()}}

    @property
    def multiple(self) -> int:
        """Width and height must be a multiple of this many pixels: one latent's side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size(self) -> int:
        """The side of the pictures the model was trained on, in pixels."""
        sample_size = self.unet.config.sample_size
        side = sample_size if isinstance(sample_size, int) else max(sample_size)
        return side * self.multiple

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)

    @property
    def cross_attention_dim(self) -> int:
        return int(self.unet.config.cross_attention_dim)

    @property
    def guides_itself(self) -> bool:
        """Whether the U-Net has learned guidance, as that of an LCM has: it reads the scale."""
        return self.unet.config.get("time_cond_proj_dim") is not None

    @property
    def token_limit(self) -> int:
        """Tokens in one chunk of a prompt, with its start and end."""
        return min(
            min(int(e.tokenizer.model_max_length), int(e.network.config.max_position_embeddings))
            for e in self.encoders.values()
        )

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: "epsilon", "v_prediction" or "sample"."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def scaling_factor(self) -> float:
        """Latents are the VAE's output times this."""
        return float(self.vae.config.scaling_factor)

    @cached_property
    def hash(self) -> str:
        """Hexadecimal SHA-256 of the checkpoint file, or of the U-Net's files of a folder.

        Its first 10 digits are the "Model hash" that A1111 writes. Read once, when first asked.
        """
        return _hash_of(self.weights)

    @cached_property
    def vae_hash(self) -> str:
        """The same of the files of a VAE that was given; empty for the model's own."""
        return _hash_of(self.vae_weights) if self.vae_weights else ""

    @torch.no_grad()
    def to_latents(self, images: torch.Tensor) -> torch.Tensor:
        """Latents ``(batch, channels, h, w)`` of ``images (batch, 3, H, W)`` in [0, 1]: the means
        of the VAE's posterior."""
        pixels = images.to(self.device, torch.float32) * 2 - 1
        mean: torch.Tensor = self.vae.encode(pixels).latent_dist.mean
        return mean * self.scaling_factor

    @torch.no_grad()
    def to_images(self, latents: torch.Tensor) -> torch.Tensor:
        """Images ``(batch, 3, H, W)`` in [0, 1], float32 on the CPU, of ``latents``."""
        latents = latents.to(self.device, torch.float32) / self.scaling_factor
        images = self.vae.decode(latents, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1).float().cpu()


def _hash_of(files: Iterable[Path]) -> str:
    """Hexadecimal SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
