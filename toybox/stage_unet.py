"""Stage 3: the U-Net, v-prediction with zero terminal SNR, on latents of the base world."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from composer.diffusion.denoise import Beginning, denoise, draw_noise, guide
from composer.precision import autocast
from toybox.captions import caption, plain_caption
from toybox.denoising import draw_timesteps, encode_words, new_scheduler
from toybox.loop import Stage, load_average, run_stage, world
from toybox.networks import decode, encode, moved, seed_torch
from toybox.optimizer import MuonAdamW
from toybox.render import SIZE, render
from toybox.stage_vae import FACTOR, LATENT_CHANNELS, to_tensor
from toybox.world import Scene, random_scene

CROSS = 128
_SIDE = SIZE // FACTOR


def new_unet() -> UNet2DConditionModel:
    """Three levels (16, 8, 4), attention at the lower two and in the middle."""
    return UNet2DConditionModel(
        sample_size=_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CROSS,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def start_from(unet: UNet2DConditionModel, folder: Path) -> None:
    """Take over the weights of the U-Net in `folder`, where shapes agree: all but the first and
    the last convolution, where that U-Net is for other latents."""
    old = cast(Any, UNet2DConditionModel).from_pretrained(folder).float().state_dict()
    own = unet.state_dict()
    own |= {k: w for k, w in old.items() if k in own and own[k].shape == w.shape}
    unet.load_state_dict(own)


class _Latents:
    """Scenes with their latents: a ring that is renewed a little at every step."""

    def __init__(self, vae: AutoencoderKL, rng: random.Random, size: int, device: str) -> None:
        self.vae, self.rng, self.device = vae, rng, device
        self.scenes: list[Scene] = []
        self.latents = torch.empty(size, LATENT_CHANNELS, _SIDE, _SIDE, device=device)
        self.next = 0

    @torch.no_grad()
    def renew(self, count: int) -> None:
        scenes = [random_scene(self.rng) for _ in range(count)]
        x = to_tensor([render(scene, self.rng) for scene in scenes]).to(self.device)
        with autocast("auto", self.device):
            latents = encode(self.vae, x)
        for scene, latent in zip(scenes, latents, strict=True):
            if self.next < len(self.scenes):
                self.scenes[self.next] = scene
            else:
                self.scenes.append(scene)
            self.latents[self.next] = latent
            self.next = (self.next + 1) % len(self.latents)

    def draw(self, count: int) -> tuple[Tensor, list[Scene]]:
        chosen = [self.rng.randrange(len(self.scenes)) for _ in range(count)]
        return self.latents[chosen], [self.scenes[i] for i in chosen]


def train_unet(
    stage: Stage,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    *,
    batch: int = 48,
    ring: int = 12288,
    start: Path | None = None,
) -> UNet2DConditionModel:
    """Train the U-Net; `start` is a folder of weights to begin with instead of with none, and
    `batch` is that of all processes together.

    The loss is the squared error of v, weighted by min(1, 5 / (SNR + 1)): even over the noisy
    steps, where words become shapes, and as min-SNR-5 over the clean ones.
    """
    seed_torch(stage.seed)
    unet = new_unet()
    if start is not None:
        start_from(unet, start)
    unet = moved(unet, stage.device)
    rng = stage.rng()
    moved(vae.requires_grad_(False), stage.device)
    moved(text_encoder.requires_grad_(False), stage.device)
    batch //= world()[1]
    data = _Latents(vae, rng, ring // world()[1], stage.device)
    for _ in range(64):
        data.renew(32)
    optimizer = MuonAdamW(unet, muon_lr=0.03, adam_lr=1.5e-3)
    signal = new_scheduler().alphas_cumprod.to(stage.device)  # (1000,)

    def loss(_: float) -> tuple[Tensor, dict[str, float], int]:
        data.renew(max(batch // 6, 1))
        x, scenes = data.draw(batch)
        words = ["" if rng.random() < 0.1 else caption(scene, rng) for scene in scenes]
        with torch.no_grad(), autocast("auto", stage.device):
            context = encode_words(words, tokenizer, text_encoder)
        t = draw_timesteps(batch).to(stage.device)
        a = signal[t][:, None, None, None]
        noise = torch.randn_like(x)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        target = a.sqrt() * noise - (1 - a).sqrt() * x
        with autocast("auto", stage.device):
            v = unet(noisy, t, context).sample
        error = (v.float() - target).pow(2).mean((1, 2, 3))
        snr = signal[t] / (1 - signal[t]).clamp_min(1e-8)
        total = (error * (5 / (snr + 1)).clamp(max=1)).mean()
        figures = {"loss": float(total.detach())}
        for low, high in ((0, 200), (200, 450), (450, 650), (650, 1000)):
            among = (t >= low) & (t < high)
            if among.any():
                figures[f"below_{high}"] = float(error.detach()[among].mean())
        return total, figures, batch

    def sample(model: nn.Module, step: int) -> None:
        path = stage.folder / f"unet_{step:06d}.png"
        unet = cast(UNet2DConditionModel, model)
        draw_samples(unet, vae, tokenizer, text_encoder, path)

    run_stage(stage, unet, optimizer, loss, sample=sample)
    return unet


def look_scenes(count: int) -> list[Scene]:
    """Scenes of the sample grids, always the same: the first half with one figure, then two,
    a sixth with three."""
    rng = random.Random("look")
    shares = [(1.0, 0.0, 0.0)] * (count // 2) + [(0.0, 1.0, 0.0)] * (count // 3)
    shares += [(0.0, 0.0, 1.0)] * (count - len(shares))
    return [random_scene(rng, counts=share) for share in shares]


@torch.no_grad()
def generate(
    words: list[str],
    unet: UNet2DConditionModel,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    *,
    steps: int = 12,
    guidance: float = 3.0,
    first_seed: int = 0,
    beginning: Beginning | None = None,
) -> Tensor:
    """Latents of pictures of `words`, each of its own seed: (n, 16, 16, 16)."""
    scheduler: Any = new_scheduler()
    scheduler.set_timesteps(steps)
    context = encode_words([""] * len(words) + words, tokenizer, text_encoder)
    shape = (LATENT_CHANNELS, _SIDE, _SIDE)
    x = draw_noise(range(first_seed, first_seed + len(words)), shape)[0].to(unet.device)

    def predicted(noisy: Tensor, t: Tensor, index: int) -> Tensor:
        v: Tensor = unet(torch.cat([noisy, noisy]), t, context).sample.float()
        without, with_prompt = v.chunk(2)
        return guide(without, with_prompt, guidance)

    with autocast("auto", str(unet.device)):
        for step in denoise(scheduler, x, predicted, beginning=beginning):
            x = step.latents
    return x


def draw_samples(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    path: Path,
    *,
    count: int = 24,
) -> None:
    """A grid of pictures of `look_scenes`, first seeds."""
    words = [plain_caption(scene) for scene in look_scenes(count)]
    latents = generate(words, unet, tokenizer, text_encoder)
    with autocast("auto", str(unet.device)):
        out = decode(vae, latents).float().clamp(-1, 1).cpu()
    array = ((out.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    rows = [np.concatenate(list(part), 1) for part in np.split(array, max(count // 8, 1))]
    Image.fromarray(np.concatenate(rows)).save(path)


def load_trained_unet(folder: Path) -> UNet2DConditionModel:
    """The U-Net as its stage left it: the moving average of its weights."""
    unet = new_unet()
    load_average(folder / "unet.safetensors", unet)
    return unet.eval()
