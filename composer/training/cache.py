"""What the frozen parts of the model make of each picture and caption, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from composer.diffusion.conditioning import Text, encode_ids, first_chunks
from composer.diffusion.model import Model


@dataclass(frozen=True)
class LatentCache:
    """Mean and spread of the VAE's posterior for each picture, (pictures, channels, h, w), and of
    its mirror image when flipping is wanted. On the CPU, float32."""

    mean: Tensor
    spread: Tensor
    scale: float
    mirrored: LatentCache | None = None

    @classmethod
    def joined(cls, caches: Sequence[LatentCache]) -> LatentCache:
        """Those of one VAE one after the other."""
        mirrored = [cache.mirrored for cache in caches if cache.mirrored is not None]
        return cls(
            torch.cat([cache.mean for cache in caches]),
            torch.cat([cache.spread for cache in caches]),
            caches[0].scale,
            cls.joined(mirrored) if mirrored else None,
        )

    def take(self, pictures: list[int], flipped: list[bool], noise: Tensor) -> Tensor:
        """Latents as the U-Net sees them; `noise` picks one of those the VAE thinks possible."""
        mean, spread = self.mean[pictures], self.spread[pictures]
        if self.mirrored is not None:
            mirror = torch.tensor(flipped).reshape(-1, 1, 1, 1)
            mean = torch.where(mirror, self.mirrored.mean[pictures], mean)
            spread = torch.where(mirror, self.mirrored.spread[pictures], spread)
        return (mean + spread * noise) * self.scale


@dataclass(frozen=True)
class CaptionCache:
    """Token ids of each different caption, the empty one first, (captions, tokens) for each text
    encoder; and what the encoders make of them, a row each, unless one is being trained."""

    index: dict[str, int]
    ids: dict[str, Tensor]
    text: Text | None

    def rows(self, captions: Sequence[str]) -> list[int]:
        """Where these captions are."""
        return [self.index[caption] for caption in captions]


def encode_pictures(vae: Any, images: Sequence[Image.Image], *, flip: bool) -> LatentCache:
    """What the VAE makes of some pictures of one size, all at once."""
    pixels = torch.stack([_pixels(image) for image in images]).to(vae.device)
    with torch.no_grad():
        posteriors = [
            vae.encode(seen).latent_dist
            for seen in ([pixels, pixels.flip(-1)] if flip else [pixels])
        ]
    caches = [
        LatentCache(
            posterior.mean.float().cpu(),
            posterior.std.float().cpu(),
            float(vae.config.scaling_factor),
        )
        for posterior in posteriors
    ]
    return replace(caches[0], mirrored=caches[1]) if flip else caches[0]


def encode_captions(model: Model, captions: Sequence[str], *, keep_text: bool) -> CaptionCache:
    """`keep_text` is false when a text encoder is trained, for what it gives then changes.

    Of a caption with more tokens than the model reads at once, the rest is left out.
    """
    different = list(dict.fromkeys(["", *captions]))
    ids, cpu = first_chunks(model, different), torch.device("cpu")
    text = None
    if keep_text:
        with torch.no_grad():
            some = [
                {part: rows[start : start + 64] for part, rows in ids.items()}
                for start in range(0, len(different), 64)
            ]
            text = Text.joined(encode_ids(model, part).to(cpu, torch.float32) for part in some)
    return CaptionCache({caption: row for row, caption in enumerate(different)}, ids, text)


def _pixels(image: Image.Image) -> Tensor:
    """RGB picture -> (3, height, width) in [-1, 1]."""
    return torch.tensor(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
