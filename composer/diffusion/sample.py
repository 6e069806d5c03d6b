"""Sampling as a generator: progress, preview and cancel are the caller's ``for`` loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from composer.clock import Clock
from composer.diffusion.conditioning import Text, encode_texts, split_into_chunks
from composer.diffusion.denoise import (
    Beginning,
    Denoised,
    denoise,
    draw_noise,
    predict,
    scheduler_for,
)
from composer.diffusion.editing import texts_at_steps
from composer.diffusion.model import Model
from composer.diffusion.passes import PassedPrediction
from composer.diffusion.preview import preview, to_image
from composer.diffusion.prompt import parse_negative, parse_prompt
from composer.diffusion.regions import RegionMaps, Regions
from composer.diffusion.request import MAX_SIDE, Request, Start
from composer.diffusion.samplers import AUTOMATIC
from composer.errors import ComposerError
from composer.experts.embedding import Embedding

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
    passes: PassedPrediction | None = None,
    start: Start | None = None,
    embeddings: Sequence[Embedding] = (),
) -> Iterator[Step | Picture]:
    """Make the request's pictures; the request is checked now, the work is done as one iterates.

    Every picture has its own CPU generator seeded with its own seed, for the first noise and for
    the noise of ancestral samplers, so it is the same alone, in any batch and on any device (up to
    the rounding of batched arithmetic). LoRA tags in the prompt are taken out of the text; to
    apply them is the caller's work, who may also change weights between two steps. One in the
    negative prompt is refused.

    ``cancelled`` is asked before each pass of the U-Net and before each decoding; once true, the
    iteration ends. ``preview_every`` n gives each n-th step a preview of the clean latents
    predicted so far. ``batch_size`` is how many pictures are made at once. ``before_step`` is
    called before each pass of the U-Net with its number and how many there are in this batch.
    ``regions`` finds out where each LoRA's words act, for gates that need it; ``passes`` makes each
    step's prediction of several passes of the U-Net, for fusions that mix predictions.

    ``start`` is a picture to begin from, of which the request's strength says how much is drawn
    anew; outside of its mask it stays as it is. With ``request.hires`` above 1 each picture is
    scaled up, and drawn anew with that strength, in a second pass.

    ``embeddings`` are words that the prompts may hold.
    """
    resolved = request.resolve(size=model.size, multiple=model.multiple)
    if start is not None and request.hires > 1:
        raise ComposerError(
            "A second pass at a higher size is for pictures that begin from noise: give the start "
            "picture a larger width and height instead."
        )
    work = _Work(
        model,
        resolved,
        cancelled,
        preview_every,
        before_step,
        regions,
        passes,
        start,
        embeddings,
    )
    return work.pictures(batch_size)


@dataclass
class _Work:
    """The making of one request's pictures."""

    model: Model
    request: Request
    cancelled: Callable[[], bool]
    preview_every: int
    before_step: Callable[[int, int], None]
    regions: Regions | None
    in_passes: PassedPrediction | None
    start: Start | None
    embeddings: Sequence[Embedding]

    def __post_init__(self) -> None:
        model, request = self.model, self.request
        assert request.width is not None and request.height is not None  # it is resolved
        self.size = (request.width, request.height)
        self.larger = tuple(_scaled(side, request.hires, model.multiple) for side in self.size)
        if max(self.larger) > MAX_SIDE:
            raise ComposerError(
                f"A second pass of {request.hires:g} times {request.width}x{request.height} is "
                f"{self.larger[0]}x{self.larger[1]} pixels; {MAX_SIDE} a side are the most. Give a "
                "smaller factor."
            )
        self.words = parse_prompt(request.prompt).text
        self.negative = parse_negative(request.negative_prompt)
        if self.start is not None:
            self.start = self.start.fitted(*self.size)
        # how many steps each pass makes
        scheduler = scheduler_for(model, request.sampler, request.steps, request.schedule)
        self.every = len(scheduler.timesteps)
        nothing = Beginning(latents=torch.empty(0), strength=request.strength)
        again = self.every - nothing.first(scheduler) if self.start or request.hires > 1 else 0
        self.passes = [again] if self.start else [self.every]
        # A1111 counts two for each step of a sampler of second order
        steps = request.steps * int(getattr(scheduler, "order", 1))
        self.texts = [self._texts(steps, self.passes[0])]
        if request.hires > 1:
            self.passes.append(again)
            self.texts.append(self._texts(again, again, before=steps))
        for text in {text for texts in self.texts for both in texts for text in both}:
            split_into_chunks(model, text, self.embeddings)  # it can be read

    def _texts(self, steps: int, made: int, before: int | None = None) -> list[tuple[str, str]]:
        """The prompt and the negative prompt at each step that a pass makes."""
        both = (
            texts_at_steps(prompt, steps, made, before=before)
            for prompt in (self.words, self.negative)
        )
        return list(zip(*both, strict=True))

    def pictures(self, batch_size: int | None) -> Iterator[Step | Picture]:
        model, request = self.model, self.request
        width, height = self.larger if request.hires > 1 else self.size
        latents = width * height // model.multiple**2
        largest = batch_size or max(1, min(MAX_BATCH, BATCH_LATENTS // latents))
        encoded = [self._encoded(texts) for texts in self.texts]
        self.clock, self.done = Clock(), 0
        sizes = (self.size, self.larger)
        whole = sum(n * side[0] * side[1] for n, side in zip(self.passes, sizes, strict=False))
        self.clock.total = whole * request.count
        batches = [
            range(first, min(first + largest, request.count))
            for first in range(0, request.count, largest)
        ]
        beginning = self._begun()
        for number, pictures in enumerate(batches):
            if self.cancelled():
                return
            places = number * sum(self.passes), len(batches) * sum(self.passes)
            finished = yield from self._sampled(pictures, encoded[0], self.size, beginning, places)
            if finished is not None and request.hires > 1:
                begun = self._enlarged(finished)
                places = places[0] + self.passes[0], places[1]
                finished = yield from self._sampled(
                    pictures, encoded[1], self.larger, begun, places
                )
            if finished is None:
                return
            for index, its in zip(pictures, finished, strict=True):
                if self.cancelled():
                    return
                seed = request.seed_of(index)
                yield Picture(
                    index=index,
                    seed=seed,
                    image=self._kept(to_image(model.to_images(its[None])[0])),
                    request=dataclasses.replace(request, seed=seed, count=1),
                )

    def _sampled(
        self,
        pictures: range,
        encoded: list[tuple[str, Text]],
        size: tuple[int, ...],
        beginning: Beginning | None,
        places: tuple[int, int],
    ) -> Generator[Step, None, Tensor | None]:
        """One pass of a batch: its latents in the end, None when cancelled.

        encoded: the prompt, and the rows of text of one picture, at each step.
        places: the number of its first step, and how many there are in all.
        """
        model, request = self.model, self.request
        latents, many = torch.empty(0), len(pictures)
        width, height = (side // model.multiple for side in size)
        skipped = self.every - len(encoded)
        maps = {
            words: self.regions.of([words] * many, **self._reading())
            for words in dict(encoded)
            if self.regions is not None
        }
        passes = {
            words: self.in_passes.of([words] * many, **self._reading())
            for words in dict(encoded)
            if self.in_passes is not None
        }
        for number, step in enumerate(
            denoise_pictures(
                model,
                lambda index: encoded[index - skipped][1].repeated(many),
                [request.seed_of(index) for index in pictures],
                (model.latent_channels, height, width),
                sampler=request.sampler,
                schedule=request.schedule,
                steps=request.steps,
                cfg_scale=request.cfg_scale,
                maps=lambda index: maps.get(encoded[index - skipped][0]),
                passes=lambda index: passes.get(encoded[index - skipped][0]),
                before_step=self.before_step,
                beginning=beginning,
            )
        ):
            latents = _finite(step.latents, step.index)
            self.done += many * size[0] * size[1]
            shown = self.preview_every > 0 and (number + 1) % self.preview_every == 0
            yield Step(
                index=places[0] + number,
                total=places[1],
                latents=latents,
                pictures=pictures,
                preview=preview(model, step.clean) if shown else None,
                seconds_left=self.clock.seconds_left(self.done),
            )
            if self.cancelled():
                return None
        return latents

    def _encoded(self, texts: Sequence[tuple[str, str]]) -> list[tuple[str, Text]]:
        """Of the prompt and the negative prompt at each step: the prompt, and the rows of text,
        with guidance those without the prompt first. Each text is encoded once."""
        guided = self.request.cfg_scale > 1 and not self.model.guides_itself
        words = dict.fromkeys(text for both in texts for text in (both if guided else both[:1]))
        encoded = encode_texts(self.model, list(words), **self._reading())
        known = dict(zip(words, encoded, strict=True))
        zero = self.model.zero_negative and not any(negative for _, negative in texts)
        rows: dict[tuple[str, str], Text] = {}
        for both in texts:
            if both not in rows:
                rows[both] = known[both[0]]
                if guided:
                    negative = known[both[1]].zeros() if zero else known[both[1]]
                    rows[both] = Text.joined([negative, rows[both]])
        return [(both[0], rows[both]) for both in texts]

    def _reading(self) -> dict[str, Any]:
        """How texts are encoded."""
        return {"clip_skip": self.request.clip_skip, "embeddings": self.embeddings}

    def _begun(self) -> Beginning | None:
        """The start picture."""
        if self.start is None:
            return None
        redrawn = None
        if self.start.mask is not None:
            side = [pixels // self.model.multiple for pixels in self.size]
            small = self.start.mask.resize((side[0], side[1]), Image.Resampling.BOX)
            redrawn = (_pixels(small) >= 0.5).to(self.model.device, torch.float32)
        latents = self.model.to_latents(_pixels(self.start.image))
        return Beginning(latents=latents, strength=self.request.strength, redrawn=redrawn)

    def _enlarged(self, latents: Tensor) -> Beginning:
        """The first pass's pictures at the second one's size."""
        images = (to_image(self.model.to_images(its[None])[0]) for its in latents)
        width, height = self.larger
        large = [image.resize((width, height), Image.Resampling.LANCZOS) for image in images]
        begun = torch.cat([self.model.to_latents(_pixels(image)) for image in large])
        return Beginning(latents=begun, strength=self.request.strength)

    def _kept(self, image: Image.Image) -> Image.Image:
        """The picture, with the start picture where that was to stay."""
        if self.start is None or self.start.mask is None:
            return image
        return Image.composite(image, self.start.image, self.start.mask)


def _scaled(side: int, factor: float, multiple: int) -> int:
    """The nearest size that the model can draw."""
    return max(round(side * factor / multiple), 1) * multiple


def _pixels(image: Image.Image) -> Tensor:
    """(1, channels, height, width) in [0, 1]."""
    pixels = torch.tensor(np.asarray(image, dtype=np.float32) / 255)
    return pixels.reshape(image.height, image.width, -1).movedim(-1, 0)[None]


def denoise_pictures(
    model: Model,
    text: Text | Callable[[int], Text],
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    *,
    sampler: str,
    steps: int,
    cfg_scale: float,
    schedule: str = AUTOMATIC,
    maps: RegionMaps | Callable[[int], RegionMaps | None] | None = None,
    passes: PassedPrediction | Callable[[int], PassedPrediction | None] | None = None,
    before_step: Callable[[int, int], None] = lambda index, total: None,
    beginning: Beginning | None = None,
) -> Iterator[Denoised]:
    """The steps of one batch of pictures, one for each seed, in float32 throughout.

    text: of batch rows, or for guidance of 2 batch, without the prompt first; or what gives those
        of a step by its number.
    shape: of the latents of one picture, (channels, h, w).
    maps: are kept up to date, for gates that need them; likewise.
    passes: make each step's prediction, likewise; None is one pass.
    """
    scheduler = scheduler_for(model, sampler, steps, schedule)
    total = len(scheduler.timesteps)

    def predicted(noisy: Tensor, timestep: Tensor, index: int) -> Tensor:
        before_step(index, total)
        now = maps(index) if callable(maps) else maps
        rows = text(index) if callable(text) else text
        several = passes(index) if callable(passes) else passes
        if several is not None:
            return several.predict(noisy, timestep, (index, total), rows, cfg_scale)
        if now is None:
            return predict(model, noisy, timestep, rows, cfg_scale)
        now.prepare(noisy, again)
        now.update(noisy, timestep, index)
        with now.guiding():
            return predict(model, noisy, timestep, rows, cfg_scale)

    def again() -> Iterator[Denoised]:
        return denoise_pictures(
            model,
            text,
            seeds,
            shape,
            sampler=sampler,
            steps=steps,
            cfg_scale=cfg_scale,
            schedule=schedule,
            beginning=beginning,
        )

    noise, generators = draw_noise(seeds, shape)
    return denoise(scheduler, noise.to(model.device), predicted, generators, beginning)


def _finite(latents: Tensor, index: int) -> Tensor:
    if not bool(latents.isfinite().all()):
        raise ComposerError(
            f"The picture is lost at step {index + 1}: its values are no longer numbers. Lower the "
            "weights of the LoRAs, leave out one that is broken, or load the model in float32."
        )
    return latents
