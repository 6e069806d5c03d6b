"""Many pictures of different prompts at once: several times as fast as one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.model import Model
from composer.diffusion.preview import to_image
from composer.diffusion.regions import RegionMaps, Regions
from composer.diffusion.samplers import SAMPLERS, build_scheduler, set_steps
from composer.errors import ComposerError

# Samplers that draw noise at every step would need one generator for each picture.
STOCHASTIC = tuple(name for name in SAMPLERS if " a" in name or "SDE" in name)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture to be made: its prompt, without LoRA tags, and its seed."""

    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How every picture of a benchmark is sampled, as in `composer.diffusion.Request`."""

    steps: int = 12
    cfg_scale: float = 3.0
    sampler: str = "DDIM"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.cfg_scale < 1:
            raise ComposerError(
                f"{self.steps} steps, batches of {self.batch_size} and CFG {self.cfg_scale:g}: "
                "each must be at least 1."
            )
        if self.sampler in STOCHASTIC:
            raise ComposerError(
                f"The sampler {self.sampler!r} draws noise at every step, and batches of different "
                "prompts cannot use it. Take DDIM, Euler or DPM++ 2M."
            )


def sample(
    model: Model, shots: Sequence[Shot], sampling: Sampling, *, regions: Regions | None = None
) -> Iterator[Image.Image]:
    """The pictures in the order of `shots`, at the model's own size, one after each batch.

    regions: finds out where each LoRA's words act, for gates that hear it.

    Each is the picture that `composer.diffusion.sample.generate` makes of the same prompt and
    seed, up to the rounding of batched arithmetic.
    """
    for begin in range(0, len(shots), sampling.batch_size):
        yield from _batch(model, shots[begin : begin + sampling.batch_size], sampling, regions)


@torch.no_grad()
def _batch(
    model: Model, shots: Sequence[Shot], sampling: Sampling, regions: Regions | None
) -> list[Image.Image]:
    """One batch; prompts of several lengths (in chunks of tokens) go one length at a time."""
    text = [_text(model, shot.prompt, guided=sampling.cfg_scale > 1) for shot in shots]
    made: dict[int, Image.Image] = {}
    for length in sorted({vectors.shape[1] for vectors in text}):
        chosen = [i for i, vectors in enumerate(text) if vectors.shape[1] == length]
        rows = torch.stack([text[i] for i in chosen], dim=1)  # (1 or 2, batch, tokens, dim)
        maps = regions and regions.of([shots[i].prompt for i in chosen])
        latents = _denoise(model, rows, [shots[i].seed for i in chosen], sampling, maps)
        images = model.to_images(latents)
        made |= {i: to_image(image) for i, image in zip(chosen, images, strict=True)}
    return [made[i] for i in range(len(shots))]


def _text(model: Model, prompt: str, *, guided: bool) -> torch.Tensor:
    """Text vectors (2, tokens, dim), without the prompt first; (1, tokens, dim) unguided."""
    found = encode_prompts(model, prompt, "" if guided else None)
    parts = [found.positive] if found.negative is None else [found.negative, found.positive]
    return torch.cat(parts)


def _denoise(
    model: Model,
    text: torch.Tensor,
    seeds: Sequence[int],
    sampling: Sampling,
    maps: RegionMaps | None,
) -> torch.Tensor:
    """Latents (batch, channels, h, w) of `text` (1 or 2, batch, tokens, dim), in float32."""
    scheduler: Any = build_scheduler(sampling.sampler, model.scheduler_config)
    set_steps(scheduler, sampling.steps, model.device)
    side = model.size // model.multiple
    shape = (model.latent_channels, side, side)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    latents = torch.stack(noise).to(model.device) * scheduler.init_noise_sigma
    passes = len(text)
    context = text.flatten(0, 1)
    for step, timestep in enumerate(scheduler.timesteps):
        noisy = scheduler.scale_model_input(latents, timestep)
        if maps is not None:
            maps.update(noisy, timestep, step)
        rows = torch.cat([noisy] * passes).to(model.dtype)
        output: torch.Tensor = model.unet(
            rows, timestep, encoder_hidden_states=context, return_dict=False
        )[0].float()
        if passes == 2:
            without, with_prompt = output.chunk(2)
            output = without + sampling.cfg_scale * (with_prompt - without)
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return latents
