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
from toybox.world import Scene, random_any_scene, random_scene

FACTOR = 8
"""Side of one latent in pixels."""
LATENT_CHANNELS = 16
KL_WEIGHT = 1e-5
"""Of the mean over latents. Fifty times as much puts channels to sleep, which are then noise that
the U-Net must model."""

NARROW = -12.0
"""Log-variance of the finished VAE's posterior: a deviation of 0.0025."""

START_NARROW = -6.0
"""Log-variance before training: latents that are noise at first teach the decoder only grey."""


def new_vae() -> AutoencoderKL:
    """f8, 16 channels, no attention: 128 px become 16×16×16."""
    vae: AutoencoderKL = cast(Any, AutoencoderKL)(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 48, 96, 192),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        cast(Any, vae).quant_conv.bias[LATENT_CHANNELS:] = START_NARROW
    return cast(Any, vae).to(memory_format=torch.channels_last)


@torch.no_grad()
def start_from(vae: AutoencoderKL, folder: Path) -> None:
    """Take over the levels next to the pixels from the VAE in `folder`, where shapes agree.

    That VAE may have fewer levels: its decoder's blocks are counted from the pixels.
    """
    old = cast(Any, AutoencoderKL).from_pretrained(folder).float()
    own = vae.state_dict()
    deeper = len(cast(Any, vae).decoder.up_blocks) - len(old.decoder.up_blocks)
    for name, weight in old.state_dict().items():
        part, block, *rest = name.split(".", 3)
        outer = name.startswith(("encoder.conv_in", "decoder.conv_out", "decoder.conv_norm_out"))
        if block == "up_blocks":
            name = f"{part}.up_blocks.{int(rest[0]) + deeper}.{rest[1]}"
        elif block != "down_blocks" and not outer:
            continue
        if name in own and own[name].shape == weight.shape:
            own[name].copy_(weight)
    vae.load_state_dict(own)


def to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB pictures of one size as (n, 3, height, width) in -1..1."""
    array = np.stack([np.asarray(image) for image in images])
    x = torch.as_tensor(array).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def pictures(rng: random.Random, count: int, *, base: float = 0.5) -> Tensor:
    """`count` renderings, `base` of them of the base world: (count, 3, 128, 128) in -1..1."""
    drawn = [
        render(random_scene(rng) if rng.random() < base else random_any_scene(rng), rng)
        for _ in range(count)
    ]
    return to_tensor(drawn)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, for values in -1..1."""
    error = (first - second).pow(2).flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def gradient_energy(x: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, of each picture: how crisp it is."""
    dx = x.diff(dim=-1).pow(2).flatten(1).mean(1)
    return dx + x.diff(dim=-2).pow(2).flatten(1).mean(1)


def picture_loss(out: Tensor, x: Tensor) -> Tensor:
    """L1, a little MSE, and the L1 of gradients at two scales: flat colour and sharp edges both."""
    total = functional.l1_loss(out, x) + functional.mse_loss(out, x)
    for scale in (1, 2):
        a = functional.avg_pool2d(out, scale) if scale > 1 else out
        b = functional.avg_pool2d(x, scale) if scale > 1 else x
        total = total + 0.5 * functional.l1_loss(a.diff(dim=-1), b.diff(dim=-1))
        total = total + 0.5 * functional.l1_loss(a.diff(dim=-2), b.diff(dim=-2))
    return total


def energy_loss(out: Tensor, x: Tensor, *, window: int = 5) -> Tensor:
    """L1 between the mean sizes of gradients around each place: is there as much edge as there?"""
    total = torch.zeros((), device=x.device)
    for axis in (-1, -2):
        first, second = (p.diff(dim=axis).abs().mean(1, keepdim=True) for p in (out, x))
        first = functional.avg_pool2d(first, window, 1)
        second = functional.avg_pool2d(second, window, 1)
        total = total + functional.l1_loss(first, second)
    return total


def detail_share(z: Tensor) -> Tensor:
    """The part of the latents' variance that half their resolution cannot hold, mean over channels.

    Detail that the pixels do not have is noise to a U-Net.
    """
    coarse = functional.avg_pool2d(z, 2)
    smooth = functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    return ((z - smooth).var((0, 2, 3)) / z.var((0, 2, 3)).clamp_min(1e-6)).mean()


class Rendered:
    """Scenes with their renderings: a ring of which some are renewed at every step."""

    def __init__(self, rng: random.Random, size: int) -> None:
        self.rng, self.size = rng, size
        self.scenes: list[Scene] = []
        self.pictures: list[Tensor] = []

    def renew(self, count: int) -> None:
        rng = self.rng
        scenes = [
            random_scene(rng) if rng.random() < 0.5 else random_any_scene(rng) for _ in range(count)
        ]
        self.scenes += scenes
        x = to_tensor([render(scene, rng) for scene in scenes])
        self.pictures += list(((x + 1) * 127.5).round().byte())
        del self.scenes[: -self.size], self.pictures[: -self.size]

    def draw(self, count: int) -> tuple[list[Scene], Tensor]:
        chosen = [self.rng.randrange(len(self.scenes)) for _ in range(count)]
        x = torch.stack([self.pictures[i] for i in chosen]).float() / 127.5 - 1
        return [self.scenes[i] for i in chosen], x


def _crops(x: Tensor, side: int, rng: random.Random) -> Tensor:
    """One crop of each picture from where figures are, on the grid of the latents."""
    places = (SIZE - side) // FACTOR
    found: list[Tensor] = []
    for picture in x:
        left, top = rng.randint(0, places) * FACTOR, rng.randint(min(2, places), places) * FACTOR
        found.append(picture[:, top : top + side, left : left + side])
    return torch.stack(found).contiguous(memory_format=torch.channels_last)


def train_vae(stage: Stage, *, start: Path | None = None) -> AutoencoderKL:
    """The whole VAE; crops of 32 px first, then of 64 px, and whole pictures in
    the second half: on crops alone, norms learn the statistics of crops."""
    seed_torch(stage.seed)
    vae = new_vae()
    if start is not None:
        start_from(vae, start)
    vae = moved(vae, stage.device)
    rng = stage.rng()
    data = Rendered(rng, 4000)
    data.renew(600)
    optimizer = MuonAdamW(vae, muon_lr=0.04, adam_lr=2e-3)

    def loss(part: float) -> tuple[Tensor, dict[str, float], int]:
        data.renew(4)
        side, count = (32, 48) if part < 0.3 else (64, 12) if part < 0.5 else (SIZE, 4)
        x = _crops(data.draw(count)[1], side, rng).to(stage.device)
        with autocast("auto", stage.device):
            found = posterior(vae, x)
            z = found.sample().float()
            # generated latents are never quite exact: what a little noise swaps must look alike
            spread = z.detach().std((0, 2, 3), keepdim=True)
            noise = torch.randn_like(z) * torch.rand(len(z), 1, 1, 1, device=z.device)
            out = decode(vae, z + 0.06 * spread * noise).float()
        mean, var = found.mean.float(), found.var.float()
        kl = (mean.pow(2) + var - 1 - var.log()).mean() / 2
        error = picture_loss(out, x) + energy_loss(out, x)
        quality = float(psnr(out.detach(), x).mean())
        crisp = float(gradient_energy(out.detach()).mean() / gradient_energy(x).mean())
        figures = {"error": float(error.detach()), "kl": float(kl.detach())}
        return error + KL_WEIGHT * kl, figures | {"psnr": quality, "crisp": crisp}, len(x)

    def sample(model: nn.Module, step: int) -> None:
        draw_round_trips(cast(AutoencoderKL, model), stage.folder / f"vae_{step:05d}.png")

    run_stage(stage, vae, optimizer, loss, sample=sample)
    vae.eval()
    normalise_latents(vae)
    return vae


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, *, count: int = 512) -> None:
    """Fold each channel's mean and deviation on the base world into the 1x1 convolutions.

    Afterwards latents have mean 0 and deviation 1 and `scaling_factor` 1 is exact.
    """
    rng = random.Random("latents")
    z = torch.cat([encode(vae, pictures(rng, 16, base=1.0)) for _ in range(count // 16)])
    mean, deviation = z.mean((0, 2, 3)), z.std((0, 2, 3))
    channels = LATENT_CHANNELS
    # bare convolutions, though diffusers' annotations say they may be absent
    quant, post = cast(Any, vae).quant_conv, cast(Any, vae).post_quant_conv
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    # The second half are log-variances. The U-Net learns from means, so whoever samples latents to
    # train on them is given the means too, as good as.
    quant.weight[channels:] = 0
    quant.bias[channels:] = NARROW
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= deviation[None, :, None, None]


@torch.no_grad()
def draw_round_trips(vae: AutoencoderKL, path: Path) -> None:
    """Renderings above their round trips, first seeds; the log has their figures."""
    x = pictures(random.Random("look"), 16)
    out = decode(vae, encode(vae, x.to(vae.device))).clamp(-1, 1).cpu()
    crisp = (gradient_energy(out) / gradient_energy(x)).mean()
    print(f"vae round trip {float(psnr(out, x).mean()):.2f} dB, crispness {crisp:.3f}", flush=True)
    rows = [
        torch.cat([torch.cat(list(p), 2) for p in (x[i : i + 8], out[i : i + 8])], 1)
        for i in (0, 8)
    ]
    grid = torch.cat(rows, 1)
    array = ((grid.permute(1, 2, 0).float() + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    Image.fromarray(array).save(path)


def load_trained_vae(folder: Path) -> AutoencoderKL:
    """The VAE as its stage left it, latents normalised."""
    vae = new_vae()
    load_average(folder / "vae.safetensors", vae)
    vae.eval()
    normalise_latents(vae)
    return vae


@torch.no_grad()
def examine_vae(vae: AutoencoderKL, *, count: int = 128) -> dict[str, float]:
    """PSNR in dB and the share of gradient energy of round trips, of the base and whole world; and
    the shares of detail of latents, and of the pictures themselves at the latents' size."""
    found: dict[str, float] = {}
    for name, base in (("base", 1.0), ("whole", 0.0)):
        rng = random.Random("examination of the vae")
        quality: list[Tensor] = []
        crisp: list[Tensor] = []
        seen: dict[str, list[Tensor]] = {"latents": [], "pictures": []}
        for _ in range(count // 16):
            x = pictures(rng, 16, base=base)
            z = encode(vae, x)
            out = decode(vae, z).clamp(-1, 1)
            seen["latents"].append(z)
            seen["pictures"].append(functional.avg_pool2d(x, FACTOR))
            quality.append(psnr(out, x))
            crisp.append(gradient_energy(out) / gradient_energy(x))
        found[f"{name}_psnr"] = float(torch.cat(quality).mean())
        found[f"{name}_crispness"] = float(torch.cat(crisp).mean())
        found |= {f"{name}_detail_{k}": float(detail_share(torch.cat(v))) for k, v in seen.items()}
    return found
