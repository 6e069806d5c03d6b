"""Many pictures of different prompts at once: several times as fast as one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image

from composer.diffusion.conditioning import Text, encode_prompts
from composer.diffusion.denoise import latent_shape
from composer.diffusion.model import Model
from composer.diffusion.passes import PassedPrediction
from composer.diffusion.preview import to_image
from composer.diffusion.regions import Regions
from composer.diffusion.sample import denoise_pictures
from composer.diffusion.samplers import SAMPLERS, split_sampler
from composer.errors import ComposerError
from composer.settings import Settings, setting

# Samplers that draw noise at every step would need one generator for each picture.
STOCHASTIC = tuple(name for name in SAMPLERS if " a" in name or "SDE" in name)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture to be made: its prompt, without LoRA tags, and its seed."""

    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Sampling(Settings):
    """How every picture of a benchmark is sampled, as in `composer.diffusion.Request`."""

    noun: ClassVar[str] = "settings of sampling"

    steps: int = setting(12, at_least=1, help="Sampling steps of a picture.")
    cfg_scale: float = setting(3.0, at_least=1, help="CFG scale of a picture.")
    sampler: str = "DDIM"
    batch_size: int = setting(32, at_least=1, help="Pictures at once.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if split_sampler(self.sampler)[0] in STOCHASTIC:
            raise ComposerError(
                f"The sampler {self.sampler!r} draws noise at every step, and batches of different "
                "prompts cannot use it. Take DDIM, Euler or DPM++ 2M."
            )


def sample(
    model: Model,
    shots: Sequence[Shot],
    sampling: Sampling,
    *,
    regions: Regions | None = None,
    passes: PassedPrediction | None = None,
    before_step: Callable[[int, int], None] = lambda index, total: None,
) -> Iterator[Image.Image]:
    """The pictures in the order of `shots`, at the model's own size, one after each batch.

    regions, passes, before_step: as for `composer.diffusion.sample.generate`.

    Each is the picture that `composer.diffusion.sample.generate` makes of the same prompt and
    seed, up to the rounding of batched arithmetic.
    """
    for begin in range(0, len(shots), sampling.batch_size):
        some = shots[begin : begin + sampling.batch_size]
        yield from _batch(model, some, sampling, regions, passes, before_step)


def _batch(
    model: Model,
    shots: Sequence[Shot],
    sampling: Sampling,
    regions: Regions | None,
    passes: PassedPrediction | None,
    before_step: Callable[[int, int], None],
) -> list[Image.Image]:
    """One batch; prompts of several lengths (in chunks of tokens) go one length at a time."""
    negative = "" if sampling.cfg_scale > 1 else None
    text = [encode_prompts(model, shot.prompt, negative).rows for shot in shots]
    made: dict[int, Image.Image] = {}
    for length in sorted({vectors.states.shape[1] for vectors in text}):
        chosen = [i for i, vectors in enumerate(text) if vectors.states.shape[1] == length]
        # all rows without a prompt first, then all with theirs
        rows = Text.joined(text[i][[row]] for row in range(len(text[0])) for i in chosen)
        prompts = [shots[i].prompt for i in chosen]
        latents = torch.empty(0)
        for step in denoise_pictures(
            model,
            rows,
            [shots[i].seed for i in chosen],
            latent_shape(model),
            sampler=sampling.sampler,
            steps=sampling.steps,
            cfg_scale=sampling.cfg_scale,
            maps=regions and regions.of(prompts),
            passes=passes and passes.of(prompts),
            before_step=before_step,
        ):
            latents = step.latents
        images = model.to_images(latents)
        made |= {i: to_image(image) for i, image in zip(chosen, images, strict=True)}
    return [made[i] for i in range(len(shots))]
