"""Sampling as a generator: progress, preview and cancel are the caller's ``for`` loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from composer.clock import Clock
from composer.diffusion.conditioning import Text, encode_prompts
from composer.diffusion.denoise import Denoised, denoise, draw_noise, predict, scheduler_for
from composer.diffusion.model import Model
from composer.diffusion.preview import preview, to_image
from composer.diffusion.prompt import parse_prompt
from composer.diffusion.regions import RegionMaps, Regions
from composer.diffusion.request import Request
from composer.diffusion.samplers import AUTOMATIC
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
    seconds_left: float | None


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
    predicted so far. ``batch_size`` is how many pictures are made at once. ``before_step`` is
    called before each pass of the U-Net with its number and how many there are in this batch.
    ``regions`` finds out where each LoRA's words act, for gates that need it.
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
    words = parse_prompt(request.prompt).text
    conditioning = encode_prompts(
        model,
        words,
        parse_prompt(request.negative_prompt).text if request.cfg_scale > 1 else None,
        clip_skip=request.clip_skip,
    )
    clock = Clock()
    for number, pictures in enumerate(batches):
        if cancelled():
            return
        many, latents = len(pictures), torch.empty(0)
        for step in denoise_pictures(
            model,
            conditioning.rows.repeated(many),
            [request.seed_of(index) for index in pictures],
            shape,
            sampler=request.sampler,
            schedule=request.schedule,
            steps=request.steps,
            cfg_scale=request.cfg_scale,
            maps=regions and regions.of([words] * many, clip_skip=request.clip_skip),
            before_step=before_step,
        ):
            latents = _finite(step.latents, step.index)
            steps, done = len(step.scheduler.timesteps), step.index + 1
            shown = preview_every > 0 and done % preview_every == 0
            image = preview(model, step.clean) if shown else None
            clock.total = steps * request.count
            left = clock.seconds_left(steps * pictures.start + done * many)
            yield Step(
                index=number * steps + step.index,
                total=len(batches) * steps,
                latents=latents,
                pictures=pictures,
                preview=image,
                seconds_left=left,
            )
            if cancelled():
                return
        for index, finished in zip(pictures, latents, strict=True):
            if cancelled():
                return
            seed = request.seed_of(index)
            yield Picture(
                index=index,
                seed=seed,
                image=to_image(model.to_images(finished[None])[0]),
                request=dataclasses.replace(request, seed=seed, count=1),
            )


def denoise_pictures(
    model: Model,
    text: Text,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    *,
    sampler: str,
    steps: int,
    cfg_scale: float,
    schedule: str = AUTOMATIC,
    maps: RegionMaps | None = None,
    before_step: Callable[[int, int], None] = lambda index, total: None,
) -> Iterator[Denoised]:
    """The steps of one batch of pictures, one for each seed, in float32 throughout.

    text: of batch rows, or for guidance of 2 batch, without the prompt first.
    shape: of the latents of one picture, (channels, h, w).
    maps: are kept up to date, for gates that need them.
    """
    scheduler = scheduler_for(model, sampler, steps, schedule)
    total = len(scheduler.timesteps)

    def predicted(noisy: Tensor, timestep: Tensor, index: int) -> Tensor:
        before_step(index, total)
        if maps is not None:
            maps.update(noisy, timestep, index)
        return predict(model, noisy, timestep, text, cfg_scale)

    noise, generators = draw_noise(seeds, shape)
    return denoise(scheduler, noise.to(model.device), predicted, generators)


def _finite(latents: Tensor, index: int) -> Tensor:
    if not bool(latents.isfinite().all()):
        raise ComposerError(
            f"The picture is lost at step {index + 1}: its values are no longer numbers. Lower the "
            "weights of the LoRAs, leave out one that is broken, or load the model in float32."
        )
    return latents


def _latent_shape(model: Model, request: Request) -> tuple[int, int, int]:
    assert request.width is not None and request.height is not None  # it is resolved
    return (
        model.latent_channels,
        request.height // model.multiple,
        request.width // model.multiple,
    )
