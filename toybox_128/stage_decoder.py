"""Stage 2: the VAE's decoder once more, for crispness; the encoder stays as it is.

A decoder that is trained on distance alone answers doubt with blur. Here it also pays for the
energy of gradients that is missing (or too much) around each place, and for what the own CLIP's
image tower sees otherwise. The U-Net, which knows latents alone, is not concerned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel

from composer.precision import autocast
from toybox.loop import Stage, load_average, run_stage
from toybox.networks import decode, encode, moved, seed_torch
from toybox.optimizer import MuonAdamW
from toybox_128.stage_vae import (
    Rendered,
    draw_round_trips,
    energy_loss,
    gradient_energy,
    new_vae,
    picture_loss,
    psnr,
)


def _features(clip: CLIPModel, x: Tensor) -> list[Tensor]:
    """Hidden states of the image tower's first layers, normalised: (n, patches, width) each."""
    seen: Any = clip.vision_model(pixel_values=x, output_hidden_states=True)
    return [functional.layer_norm(h, h.shape[-1:]) for h in seen.hidden_states[1:4]]


def train_decoder(stage: Stage, vae: AutoencoderKL, clip: CLIPModel) -> AutoencoderKL:
    """Train the decoder of `vae`, whose latents are normalised already."""
    seed_torch(stage.seed)
    vae = moved(vae, stage.device)
    cast(Any, vae).encoder.requires_grad_(False)
    cast(Any, vae).quant_conv.requires_grad_(False)
    clip = moved(clip.requires_grad_(False), stage.device)
    rng = stage.rng()
    data = Rendered(rng, 4000)
    data.renew(400)
    optimizer = MuonAdamW(vae, muon_lr=0.012, adam_lr=6e-4)

    def loss(_: float) -> tuple[Tensor, dict[str, float], int]:
        data.renew(3)
        x = data.draw(4)[1].contiguous(memory_format=torch.channels_last).to(stage.device)
        with autocast("auto", stage.device):
            with torch.no_grad():
                z = encode(vae, x).float()
                wanted = _features(clip, x)
            # generated latents are never quite exact
            noise = torch.randn_like(z) * torch.rand(len(z), 1, 1, 1, device=z.device)
            out = decode(vae, z + 0.08 * noise).float()
            pairs = zip(_features(clip, out), wanted, strict=True)
            seen = torch.stack([functional.l1_loss(a.float(), b.float()) for a, b in pairs]).sum()
        error, energy = picture_loss(out, x), energy_loss(out, x)
        figures = {
            "error": float(error.detach()),
            "energy": float(energy.detach()),
            "seen": float(seen.detach()),
            "psnr": float(psnr(out.detach(), x).mean()),
            "crisp": float((gradient_energy(out.detach()) / gradient_energy(x)).mean()),
        }
        return error + energy + 0.05 * seen, figures, len(x)

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
