"""Stage 1: the VAE, on renderings of the whole world."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from composer.precision import autocast
from toybox.loop import Stage, load_average, run_stage
from toybox.networks import decode, encode, moved, posterior, seed_torch
from toybox.optimizer import MuonAdamW
from toybox.render import SIZE, render
from toybox.world import random_any_scene, random_scene

LATENT_CHANNELS = 8
KL_WEIGHT = 1e-5
"""Of the mean over latents. Fifty times as much puts channels to sleep, which are then noise that
the U-Net must model."""

NARROW = -12.0
"""Log-variance of the finished VAE's posterior: a deviation of 0.0025."""


def new_vae() -> AutoencoderKL:
    """f4, 8 channels, no attention: 64 px become 16×16×8."""
    return cast(Any, AutoencoderKL)(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def pictures(rng: random.Random, count: int, *, base: float = 0.5) -> Tensor:
    """`count` renderings, `base` of them of the base world: (count, 3, 64, 64) in -1..1."""
    drawn = [
        render(random_scene(rng) if rng.random() < base else random_any_scene(rng), rng)
        for _ in range(count)
    ]
    return to_tensor(drawn)


def to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB pictures of one size as (n, 3, height, width) in -1..1."""
    array = np.stack([np.asarray(image) for image in images])
    return torch.as_tensor(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, for values in -1..1."""
    error = (first - second).pow(2).flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def _picture_loss(out: Tensor, x: Tensor) -> Tensor:
    """L1 + 2·MSE + half the L1 of the gradients: flat colour and sharp edges both."""
    dx = functional.l1_loss(out.diff(dim=-1), x.diff(dim=-1))
    dy = functional.l1_loss(out.diff(dim=-2), x.diff(dim=-2))
    return functional.l1_loss(out, x) + 2 * functional.mse_loss(out, x) + 0.5 * (dx + dy)


def train_vae(stage: Stage) -> AutoencoderKL:
    """The whole VAE; crops of 32 px first (four times as many), whole pictures from 60 % on."""
    seed_torch(stage.seed)
    vae = moved(new_vae(), stage.device)
    rng = stage.rng()
    optimizer = MuonAdamW(vae, muon_lr=0.04, adam_lr=2e-3)

    def loss(part: float) -> tuple[Tensor, dict[str, float], int]:
        cropped = part < 0.6
        x = pictures(rng, 24 if cropped else 12)
        if cropped:
            # a crop from the middle band, where the figures are
            left, top = rng.randint(0, SIZE - 32), rng.randint(12, SIZE - 36)
            x = x[:, :, top : top + 32, left : left + 32]
        x = x.to(stage.device)
        with autocast("auto", stage.device):
            found = posterior(vae, x)
            z = found.sample().float()
            # generated latents are never quite exact: what a little noise swaps must look alike
            spread = z.detach().std((0, 2, 3), keepdim=True)
            out = decode(vae, z + 0.03 * spread * torch.randn_like(z))
        out = out.float()
        kl = 0.5 * (found.mean.float() ** 2 + found.var.float() - 1 - found.logvar.float())
        total = _picture_loss(out, x) + KL_WEIGHT * kl.mean()
        figures = {"psnr": float(psnr(out.detach(), x).mean()), "kl": float(kl.detach().mean())}
        return total, figures, len(x)

    run_stage(stage, vae, optimizer, loss, sample=lambda m, _: _draw(m, stage.folder / "vae.png"))
    return vae


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, count: int = 512) -> None:
    """Fold the latents' mean and deviation into the convolutions around them.

    Afterwards each channel has mean 0 and deviation 1 over the base world, exactly, and
    `scaling_factor` is 1: the U-Net sees unit variance with no constant to remember. The posterior
    becomes narrow.
    """
    rng = random.Random("normalise")
    x = pictures(rng, count, base=1.0)
    z = torch.cat([encode(vae, part) for part in torch.split(x, 32)])
    mean, deviation = z.mean((0, 2, 3)), z.std((0, 2, 3))
    channels = LATENT_CHANNELS
    # bare convolutions, though diffusers' annotations say they may be absent
    quant, post = cast(Any, vae).quant_conv, cast(Any, vae).post_quant_conv
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    # The second half are log-variances. A channel that the KL term has put to sleep has a posterior
    # as wide as the prior, and would now be nine times as wide; the U-Net learns from means, so
    # whoever samples latents to train on them is given the means too, as good as.
    quant.weight[channels:] = 0
    quant.bias[channels:] = NARROW
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= deviation[None, :, None, None]


@torch.no_grad()
def _draw(model: nn.Module, path: Path) -> None:
    """Renderings above their round trips, first seeds."""
    vae = model if isinstance(model, AutoencoderKL) else None
    assert vae is not None
    x = pictures(random.Random("look"), 16)
    out = decode(vae, encode(vae, x.to(vae.device))).clamp(-1, 1).cpu()
    print(f"vae round trip {float(psnr(out, x).mean()):.2f} dB", flush=True)
    grid = torch.cat([torch.cat(list(x), 2), torch.cat(list(out), 2)], 1)
    array = ((grid.permute(1, 2, 0).float() + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    Image.fromarray(array).resize((16 * 128, 256), Image.Resampling.NEAREST).save(path)


def load_trained_vae(folder: Path) -> AutoencoderKL:
    """The VAE as its stage left it, latents normalised."""
    vae = new_vae()
    load_average(folder / "vae.safetensors", vae)
    vae.eval()
    normalise_latents(vae)
    return vae
