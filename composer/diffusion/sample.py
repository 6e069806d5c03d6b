"""Sampling as a generator: progress, preview and cancel are the caller's ``for`` loop."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from composer.diffusion.conditioning import Conditioning, encode_prompts
from composer.diffusion.model import Model
from composer.diffusion.preview import denoised, preview, to_image
from composer.diffusion.prompt import parse_prompt
from composer.diffusion.regions import RegionMaps, Regions
from composer.diffusion.request import Request
from composer.diffusion.samplers import build_scheduler, set_steps
from composer.errors import ComposerError

MAX_BATCH = 8
# Latent pixels of one batch: four pictures of 512 x 512 on Stable Diffusion 1.5.
BATCH_LATENTS = 4 * 64 * 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One pass of the U-Net is done: ``index`` from 0 of ``total`` in the whole request.

    ``latents (batch, channels, h, w)`` are those of the pictures ``pictures`` now being made.
    Samplers of second order pass twice for most steps, so ``total`` can exceed the request's steps.
    """

    index: int
    total: int
    latents: torch.Tensor
    pictures: range
    preview: Image.Image | None
    seconds_left: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A finished picture; ``request`` is the one that makes this picture alone."""

    index: int
    seed: int
    image: Image.Image
    request: Request


def generate(
    model: Model,
    request: Request,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    preview_every: int = 0,
    batch_size: int | None = None,
    before_step: Callable[[int, int], None] = lambda index, total: None,
    regions: Regions | None = None,
) -> Iterator[Step | Picture]:
    """Make the request's pictures; the request is checked now, the work is done as one iterates.

    Every picture has its own CPU generator seeded with its own seed, for the first noise and for
    the noise of ancestral samplers, so it is the same alone, in any batch and on any device (up to
    the rounding of batched arithmetic). LoRA tags in the prompts are taken out of the text; to
    apply them is the caller's work, who may also change weights between two steps.

    ``cancelled`` is asked before each pass of the U-Net and before each decoding; once true, the
    iteration ends. ``preview_every`` n gives each n-th step a preview of the clean latents
    predicted so far. ``batch_size`` is how many pictures are made at once. ``before_step`` is told
    before each pass of the U-Net which one it is of how many in this batch. ``regions`` finds out
    where each LoRA's words act, for gates that hear it.
    """
    resolved = request.resolve(size=model.size, multiple=model.multiple)
    return _pictures(model, resolved, cancelled, preview_every, batch_size, before_step, regions)


def _pictures(
    model: Model,
    request: Request,
    cancelled: Callable[[], bool],
    preview_every: int,
    batch_size: int | None,
    before_step: Callable[[int, int], None],
    regions: Regions | None,
) -> Iterator[Step | Picture]:
    shape = _latent_shape(model, request)
    largest = batch_size or max(1, min(MAX_BATCH, BATCH_LATENTS // (shape[1] * shape[2])))
    batches = [
        range(first, min(first + largest, request.count))
        for first in range(0, request.count, largest)
    ]
    conditioning = encode_prompts(
        model,
        parse_prompt(request.prompt).text,
        parse_prompt(request.negative_prompt).text if request.cfg_scale > 1 else None,
        clip_skip=request.clip_skip,
    )
    clock = _Clock()
    for number, pictures in enumerate(batches):
        sampling = _Sampling(model, request, conditioning, pictures, shape)
        if regions is not None:
            words = [parse_prompt(request.prompt).text] * len(pictures)
            sampling.maps = regions.of(words, clip_skip=request.clip_skip)
        steps = len(sampling.timesteps)
        for i in range(steps):
            if cancelled():
                return
            index, total = number * steps + i, len(batches) * steps
            shown = preview_every > 0 and (i + 1) % preview_every == 0
            before_step(i, steps)
            image = sampling.advance(i, with_preview=shown)
            clock.tick(len(pictures))
            left = (steps - 1 - i) * len(pictures) + steps * (request.count - pictures.stop)
            yield Step(
                index=index,
                total=total,
                latents=sampling.latents,
                pictures=pictures,
                preview=image,
                seconds_left=clock.seconds_for(left),
            )
        for index, latents in zip(pictures, sampling.latents, strict=True):
            if cancelled():
                return
            seed = request.seed_of(index)
            yield Picture(
                index=index,
                seed=seed,
                image=to_image(model.to_images(latents[None])[0]),
                request=dataclasses.replace(request, seed=seed, count=1),
            )


class _Sampling:
    """The latents of one batch of pictures on their way from noise, in float32 throughout."""

    def __init__(
        self,
        model: Model,
        request: Request,
        conditioning: Conditioning,
        pictures: range,
        shape: tuple[int, int, int],
    ) -> None:
        self.model = model
        self.cfg_scale = request.cfg_scale
        self.scheduler = build_scheduler(request.sampler, model.scheduler_config)
        set_steps(self.scheduler, request.steps, model.device)
        self.timesteps: torch.Tensor = self.scheduler.timesteps
        generators = [torch.Generator().manual_seed(request.seed_of(i)) for i in pictures]
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        self.latents = noise.to(model.device) * self.scheduler.init_noise_sigma
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        self.step_arguments: dict[str, Any] = {"generator": generators} if takes_generator else {}
        self.guided = conditioning.negative is not None
        text = conditioning.positive.expand(len(pictures), -1, -1)
        if conditioning.negative is not None:
            text = torch.cat([conditioning.negative.expand(len(pictures), -1, -1), text])
        self.maps: RegionMaps | None = None
        self.text = text  # (batch or 2 batch, tokens, dim): without the prompt first

    # A decorator and not a `with` around the loop: that would reach the caller at every yield.
    @torch.no_grad()
    def advance(self, i: int, *, with_preview: bool) -> Image.Image | None:
        """One pass of the U-Net and one step of the solver."""
        timestep = self.timesteps[i]
        noisy = self.scheduler.scale_model_input(self.latents, timestep)
        if self.maps is not None:
            self.maps.update(noisy, timestep, i)
        output = self._predict(noisy, timestep)
        self.latents = self.scheduler.step(
            output, timestep, self.latents, **self.step_arguments, return_dict=False
        )[0]
        if not bool(self.latents.isfinite().all()):
            raise ComposerError(
                f"The picture is lost at step {i + 1}: its values are no longer numbers. Lower the "
                "weights of the LoRAs, leave out one that is broken, or load the model in float32."
            )
        if not with_preview:
            return None
        clean = denoised(
            self.model.scheduler_config, self.scheduler.alphas_cumprod, timestep, noisy, output
        )
        return preview(self.model, clean)

    def _predict(self, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The U-Net's output, guided: without + scale * (with - without the prompt)."""
        rows = torch.cat([noisy, noisy]) if self.guided else noisy
        output: torch.Tensor = self.model.unet(
            rows.to(self.model.dtype), timestep, encoder_hidden_states=self.text, return_dict=False
        )[0].float()
        if not self.guided:
            return output
        without, with_prompt = output.chunk(2)
        return without + self.cfg_scale * (with_prompt - without)


class _Clock:
    """Time left, from the mean time of a picture's step so far."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._done = 0

    def tick(self, pictures: int) -> None:
        self._done += pictures

    def seconds_for(self, left: int) -> float:
        return (time.monotonic() - self._started) / self._done * left


def _latent_shape(model: Model, request: Request) -> tuple[int, int, int]:
    assert request.width is not None and request.height is not None  # it is resolved
    return (
        model.latent_channels,
        request.height // model.multiple,
        request.width // model.multiple,
    )
