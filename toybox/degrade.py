"""Pictures made worse step by step, and a measure of how legible each figure still is.

The oracle learns from them where naming ends. Kinds: blur, noise, bending, the blend of two scenes,
pieces out of place, latents that were shaken before they were decoded, and the first guess that an
undertrained U-Net makes of a noisy latent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from toybox.networks import decode, encode
from toybox.render import SIZE, figure_boxes
from toybox.world import Scene

Guess = Callable[[Tensor, Tensor], Tensor]
"""From noisy latents and their timesteps to the latents that a U-Net guesses at once."""


def _strength(x: Tensor) -> Tensor:
    return torch.rand(len(x), 1, 1, 1)


def blurred(x: Tensor, strength: Tensor) -> Tensor:
    """Softened by up to a Gaussian of about 9 px."""
    found = x
    softer = x
    for level in range(4):  # each level halves what is left of the detail
        low = functional.avg_pool2d(softer, 2 ** (level + 1))
        softer = functional.interpolate(low, size=x.shape[-2:], mode="bicubic")
        found = torch.where(strength * 4 > level, found.lerp(softer, 0.8), found)
    return found


def noisy(x: Tensor, strength: Tensor) -> Tensor:
    """Noise of a deviation of up to 1.2, half of it in grains of 4 px."""
    grains = functional.interpolate(torch.randn(len(x), 3, SIZE // 4, SIZE // 4), size=x.shape[-2:])
    return x + (torch.randn_like(x) + grains) * 0.85 * strength


def bent(x: Tensor, strength: Tensor, *, most: float = 9) -> Tensor:
    """Bent by up to about `most` pixels, here and there."""
    count = len(x)
    side = 8 if torch.rand(()) < 0.5 else 16
    bend = torch.randn(count, 2, side, side) * strength * most
    shift = functional.interpolate(bend, size=x.shape[-2:], mode="bicubic")
    axis = torch.linspace(-1, 1, SIZE)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([columns, rows], -1) + shift.permute(0, 2, 3, 1) * (2 / SIZE)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=True)


def blended(x: Tensor, strength: Tensor) -> Tensor:
    """Up to half of another scene shines through, here more and there less."""
    other = x.roll(1, 0)
    patches = functional.interpolate(torch.rand(len(x), 1, 4, 4), size=x.shape[-2:], mode="bicubic")
    return x.lerp(other, (strength * 0.5 + 0.5 * strength * (patches - 0.5)).clamp(0, 0.6))


def shuffled(x: Tensor, strength: Tensor) -> Tensor:
    """Pieces of 8 px are taken from near by, up to all of them."""
    side = SIZE // 8
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    shift = (torch.randn(len(x), 2, side, side) * 1.5).round().long()
    moved = torch.rand(len(x), 1, side, side) < strength
    source = (places[None] + shift * moved).clamp(0, side - 1)
    index = (source[:, 0] * side + source[:, 1]).flatten(1)  # (n, pieces)
    pieces = functional.unfold(x, 8, stride=8)  # (n, 3·64, pieces)
    chosen = pieces.gather(2, index[:, None].expand(-1, pieces.shape[1], -1))
    return functional.fold(chosen, (SIZE, SIZE), 8, stride=8)


def shaken(x: Tensor, strength: Tensor, vae: AutoencoderKL) -> Tensor:
    """Through the VAE, with noise of a deviation of up to 1.6 on the latents."""
    z = encode(vae, x)
    return decode(vae, z + torch.randn_like(z) * 1.6 * strength**2).float().clamp(-1, 1)


def guessed(x: Tensor, strength: Tensor, vae: AutoencoderKL, guess: Guess) -> Tensor:
    """What a U-Net makes in one step of the picture's latents under noise."""
    z = encode(vae, x)
    t = (strength.flatten() * 950).long()
    return decode(vae, guess(z, t)).float().clamp(-1, 1)


@torch.no_grad()
def degraded(x: Tensor, vae: AutoencoderKL, guess: Guess | None) -> Tensor:
    """Each picture made worse in one of the kinds, by a random strength."""
    found = x.clone()
    kinds: list[Callable[[Tensor, Tensor], Tensor]] = [blurred, noisy, bent, blended, shuffled]
    kinds.append(partial(shaken, vae=vae))
    if guess is not None:
        kinds += [partial(guessed, vae=vae, guess=guess)] * 2
    chosen = torch.randint(len(kinds), (len(x),))
    for number, kind in enumerate(kinds):
        among = chosen == number
        if among.any():
            found[among] = kind(x[among], _strength(x[among]))
    return found.clamp(-1, 1)


def _local(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 7, 1, 3, count_include_pad=False)


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of two batches at half size, per channel and place: (n, 64, 64)."""
    a, b = functional.avg_pool2d(first, 2), functional.avg_pool2d(second, 2)
    mean_a, mean_b = _local(a), _local(b)
    var_a, var_b = _local(a * a) - mean_a**2, _local(b * b) - mean_b**2
    both = _local(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + 0.04) / (mean_a**2 + mean_b**2 + 0.04)
    form = (2 * both + 0.01) / (var_a + var_b + 0.01)
    return (light.clamp_min(0) * form).mean(1)


def legibility(scenes: list[Scene], clean: Tensor, worse: Tensor) -> Tensor:
    """How much is left of each figure, and of the whole: (n, 4), NaN where no figure stands.

    A figure's is the mean similarity over its box, the whole's that over the picture; 1 is all.
    """
    near = similarity(clean, worse)
    found = torch.full((len(scenes), 4), float("nan"))
    for number, scene in enumerate(scenes):
        for index, box in enumerate(figure_boxes(len(scene.figures))):
            left, top, right, bottom = (edge // 2 for edge in box)
            found[number, index] = near[number, top:bottom, left:right].mean()
        found[number, 3] = near[number].mean()
    return found
