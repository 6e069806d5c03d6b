"""Stage 4: the VAE's decoder once more, for crispness; the encoder stays as it is.

A decoder that is trained on distance alone answers doubt with blur. Here it also pays for the
energy of gradients that is missing (or too much) around each place, and for what the own CLIP's
image tower sees otherwise. And it meets latents as they are in use: half of its latents the
finished U-Net has drawn anew from the last steps on (SDEdit, arXiv 2108.01073), so that what they
show is known and their faults are the U-Net's. The U-Net, which knows latents alone, is not
concerned.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from composer.diffusion.denoise import Beginning
from composer.precision import autocast
from toybox.captions import caption
from toybox.loop import Stage, load_average, run_stage
from toybox.networks import decode, encode, moved, seed_torch
from toybox.optimizer import MuonAdamW
from toybox.render import render
from toybox.stage_unet import generate
from toybox.stage_vae import (
    Rendered,
    draw_round_trips,
    energy_loss,
    gradient_energy,
    new_vae,
    picture_loss,
    psnr,
    to_tensor,
)
from toybox.world import random_scene

REDRAWN = (0.1, 0.5)
"""The part of the steps that the U-Net draws anew; from more on, figures become others."""
ENERGY = 3.0
"""Of the energy of gradients; with 1, as in the VAE's own training, edges stay as soft as there."""


def _features(clip: CLIPModel, x: Tensor) -> list[Tensor]:
    """Hidden states of the image tower's first layers, normalised: (n, patches, width) each."""
    seen: Any = clip.vision_model(pixel_values=x, output_hidden_states=True)
    return [functional.layer_norm(h, h.shape[-1:]) for h in seen.hidden_states[1:4]]


Redraw = Callable[[list[str], Tensor, float], Tensor]
"""From words, clean latents and the part of the steps to make again to the latents drawn anew."""


def redraw_by(
    unet: UNet2DConditionModel, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> Redraw:
    """The U-Net as it is used, from some step on."""

    def redraw(words: list[str], z: Tensor, strength: float) -> Tensor:
        beginning = Beginning(latents=z, strength=strength)
        seed = int(torch.randint(2**31, ()))
        return generate(words, unet, tokenizer, text_encoder, first_seed=seed, beginning=beginning)

    return redraw


class _Redrawn:
    """Renderings of the base world with latents drawn anew, a few new ones at every step."""

    def __init__(
        self, vae: AutoencoderKL, redraw: Redraw, rng: random.Random, size: int = 600
    ) -> None:
        self.vae, self.redraw, self.rng, self.size = vae, redraw, rng, size
        self.kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def renew(self, count: int) -> None:
        scenes = [random_scene(self.rng) for _ in range(count)]
        x = to_tensor([render(scene, self.rng) for scene in scenes]).to(self.vae.device)
        with autocast("auto", str(x.device)):
            z = encode(self.vae, x).float()
        words = [caption(scene, self.rng) for scene in scenes]
        z = self.redraw(words, z, self.rng.uniform(*REDRAWN))
        self.kept += list(zip(z, x, strict=True))
        del self.kept[: -self.size]

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """(latents, pictures) of `count` of them."""
        z, x = zip(*(self.rng.choice(self.kept) for _ in range(count)), strict=True)
        return torch.stack(z), torch.stack(x)


def train_decoder(
    stage: Stage, vae: AutoencoderKL, clip: CLIPModel, redraw: Redraw
) -> AutoencoderKL:
    """Train the decoder of `vae`, whose latents are normalised already."""
    seed_torch(stage.seed)
    vae = moved(vae, stage.device)
    cast(Any, vae).encoder.requires_grad_(False)
    cast(Any, vae).quant_conv.requires_grad_(False)
    clip = moved(clip.requires_grad_(False), stage.device)
    rng = stage.rng()
    data = Rendered(rng, 4000)
    data.renew(400)
    redrawn = _Redrawn(vae, redraw, rng)
    for _ in range(10):
        redrawn.renew(12)
    optimizer = MuonAdamW(vae, muon_lr=0.012, adam_lr=6e-4)

    turn = 0

    def loss(_: float) -> tuple[Tensor, dict[str, float], int]:
        nonlocal turn
        data.renew(2)
        turn += 1
        if turn % 4 == 0:
            redrawn.renew(4)
        x = data.draw(2)[1].to(stage.device)
        with autocast("auto", stage.device):
            with torch.no_grad():
                z = encode(vae, x).float()
                # generated latents are never quite exact
                z += 0.08 * torch.randn_like(z) * torch.rand(len(z), 1, 1, 1, device=z.device)
                again, shown = redrawn.draw(2)
                z, x = torch.cat([z, again]), torch.cat([x, shown])
                x = x.contiguous(memory_format=torch.channels_last)
                wanted = _features(clip, x)
            out = decode(vae, z).float()
            pairs = zip(_features(clip, out), wanted, strict=True)
            seen = torch.stack([functional.l1_loss(a.float(), b.float()) for a, b in pairs]).sum()
        error, energy = picture_loss(out, x), energy_loss(out, x)
        figures = {
            "error": float(error.detach()),
            "energy": float(energy.detach()),
            "seen": float(seen.detach()),
            "psnr": float(psnr(out.detach(), x)[:2].mean()),
            "redrawn": float(psnr(out.detach(), x)[2:].mean()),
            "crisp": float((gradient_energy(out.detach()) / gradient_energy(x)).mean()),
        }
        return error + ENERGY * energy + 0.05 * seen, figures, len(x)

    def sample(model: nn.Module, step: int) -> None:
        path = stage.folder / f"decoder_{step:05d}.png"
        draw_round_trips(cast(AutoencoderKL, model), path)

    run_stage(stage, vae, optimizer, loss, sample=sample)
    return vae.eval()


def load_trained_decoder(folder: Path) -> AutoencoderKL:
    """The whole VAE as this stage left it, latents normalised."""
    vae = new_vae()
    load_average(folder / "decoder.safetensors", vae)
    return vae.eval()
