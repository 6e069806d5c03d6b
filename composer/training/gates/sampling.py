"""Samplings that gates learn from: pictures that experts draw alone, and what they predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from composer.diffusion.conditioning import Text, encode_ids, encode_prompts, first_chunks
from composer.diffusion.denoise import (
    Denoised,
    denoise,
    guide,
    latent_shape,
    predict,
    scheduler_for,
)
from composer.diffusion.model import Model
from composer.mixture import Mixture
from composer.training.draws import generator_for

SAMPLER = "DDIM"
STEPS = 12
"""Of each sampling."""
CFG_SCALE = 3.0
PICTURES = 8
"""Pictures that each expert draws alone."""

Together = tuple[int, ...]
"""Experts that have weight 1 at once, the others 0; by index."""


@dataclass
class Texts:
    """Text vectors of prompts of one chunk each, as the gated model reads them.

    learning: whether the text encoder's gates learn: then each call reads the prompts anew, with a
        gradient; otherwise each prompt is read once.
    """

    model: Model
    learning: bool
    _known: dict[str, Text] = field(default_factory=dict[str, Text])

    def __call__(self, prompts: Sequence[str]) -> Text:
        """A row for each prompt, as `encode_prompts` gives it."""
        if self.learning:
            return encode_ids(self.model, first_chunks(self.model, prompts))
        with torch.no_grad():
            for prompt in set(prompts) - self._known.keys():
                self._known[prompt] = encode_prompts(self.model, prompt, None).positive
        return Text.joined(self._known[prompt] for prompt in prompts)


class Sums:
    """Predictions of plain sums of the mixture's experts, several sums in one batch.

    While it is used every row of the batch has constant weights of its own (`Mixture.weigh_rows`).
    """

    def __init__(self, model: Model, mixture: Mixture) -> None:
        self.model, self.mixture = model, mixture
        self._texts: dict[tuple[str, Together], Text] = {}

    def text(self, prompt: str, experts: Together) -> Text:
        """Text of one row, as the text encoder gives them with these experts."""
        key = (prompt, experts)
        if key not in self._texts:
            self.mixture.weigh_rows(self._weights([experts]))
            self._texts[key] = encode_prompts(self.model, prompt, None).positive
        return self._texts[key]

    def predict(
        self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str], chosen: Sequence[Together]
    ) -> Tensor:
        """(len(chosen), batch, ...), float32: the prediction with each of these sets of experts, in
        one pass, with a gradient to the latents if they ask for one.

        timesteps: one, or one for each of the latents.
        """
        with torch.no_grad():
            text = Text.joined(self.text(p, some) for some in chosen for p in prompts)
        self.mixture.weigh_rows(self._weights([some for some in chosen for _ in prompts]))
        rows = torch.cat([latents] * len(chosen))
        times = timesteps.repeat(len(chosen)) if timesteps.ndim else timesteps
        output = predict(self.model, rows, times, text)
        return output.reshape(len(chosen), len(prompts), *output.shape[1:])

    def _weights(self, chosen: Sequence[Together]) -> Tensor:
        """(rows, experts): in each row 1 for these experts, 0 for the others."""
        weights = torch.zeros(len(chosen), len(self.mixture.names))
        for row, experts in enumerate(chosen):
            weights[row, list(experts)] = 1.0
        return weights


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnAlone:
    """One step of the pictures that one expert draws alone.

    expert, step: which, counted from 0, of `experts` and of STEPS.
    prompts: of the pictures.
    clean: the clean latents that the guided prediction of this step points to.
    latents: after this step.
    generator: of this expert's draws, for what else is to be drawn at this step.
    """

    expert: int
    experts: int
    step: int
    prompts: list[str]
    clean: Tensor
    latents: Tensor
    generator: torch.Generator

    @property
    def finished(self) -> bool:
        """Whether this was the last step: `latents` are the pictures."""
        return self.step == STEPS - 1

    @property
    def progress(self) -> tuple[int, int]:
        """Steps done, and those of all experts together."""
        return self.expert * STEPS + self.step + 1, self.experts * STEPS


def draw_alone(
    sums: Sums, known: Sequence[Sequence[str]], *, seed: int, purpose: str
) -> Iterator[DrawnAlone]:
    """One expert after the other samples PICTURES pictures.

    known: for each expert the prompts that its pictures are of, in turn.
    purpose: of the random draws, apart from those of all other purposes.
    """
    model = sums.model
    for expert, own in enumerate(known):
        prompts = [own[n % len(own)] for n in range(PICTURES)]
        generator = generator_for(seed, purpose, expert)
        noise = torch.randn((PICTURES, *latent_shape(model)), generator=generator)
        for step in _drawn(sums, expert, prompts, noise.to(model.device)):
            yield DrawnAlone(
                expert=expert,
                experts=len(known),
                step=step.index,
                prompts=prompts,
                clean=step.clean,
                latents=step.latents,
                generator=generator,
            )


def _drawn(sums: Sums, expert: int, prompts: Sequence[str], noise: Tensor) -> Iterator[Denoised]:
    def predicted(latents: Tensor, timestep: Tensor, index: int) -> Tensor:
        without, with_prompt = (
            sums.predict(latents, timestep, some, [(expert,)])[0]
            for some in ([""] * len(prompts), prompts)
        )
        return guide(without, with_prompt, CFG_SCALE)

    return denoise(scheduler_for(sums.model, SAMPLER, STEPS), noise, predicted)
