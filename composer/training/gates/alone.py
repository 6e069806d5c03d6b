"""Every expert draws pictures alone: what objectives ask of them before any gate is put in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composer.training.draws import generator_for
from composer.training.gates.config import GateTraining
from composer.training.gates.teachers import Sampling, Teachers, guide, latent_shape, to_clean

ALONE = 8
"""Pictures that each expert draws of itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnAlone:
    """One step of the pictures that one expert draws alone.

    expert, step: which, counted from 0, of `experts` and of the sampling's `steps`.
    prompts: of the pictures.
    clean: the clean latents that the guided prediction of this step points to.
    latents: after this step.
    generator: of this expert's draws, for what else is to be drawn at this step.
    """

    expert: int
    experts: int
    step: int
    steps: int
    prompts: list[str]
    clean: Tensor
    latents: Tensor
    generator: torch.Generator

    @property
    def finished(self) -> bool:
        """Whether this was the last step: `latents` are the pictures."""
        return self.step == self.steps - 1

    @property
    def progress(self) -> tuple[int, int]:
        """Steps done, and those of all experts together."""
        return self.expert * self.steps + self.step + 1, self.experts * self.steps


def draw_alone(
    teachers: Teachers, config: GateTraining, known: Sequence[Sequence[str]], *, purpose: str
) -> Iterator[DrawnAlone]:
    """One expert after the other samples ALONE pictures; the mixture's weights are lost.

    known: for each expert the prompts that its pictures are of, in turn.
    purpose: of the random draws, apart from those of all other purposes.
    """
    model, steps, nothing = teachers.model, config.teacher_steps, [""] * ALONE
    for expert, own in enumerate(known):
        prompts = [own[n % len(own)] for n in range(ALONE)]
        generator = generator_for(config.seed, purpose, expert)
        noise = torch.randn((ALONE, *latent_shape(model)), generator=generator)
        sampling = Sampling(model, steps, noise.to(model.device), config.cfg_scale)
        for step, timestep in enumerate(sampling.scheduler.timesteps):
            latents = sampling.latents
            without, told = (
                teachers.ask(latents, timestep, some, [expert])[0] for some in (nothing, prompts)
            )
            guided = guide(without, told, config.cfg_scale)
            clean = to_clean(sampling.scheduler, guided, timestep, latents)
            sampling.advance(timestep, without, told)
            yield DrawnAlone(
                expert=expert,
                experts=len(known),
                step=step,
                steps=steps,
                prompts=prompts,
                clean=clean,
                latents=sampling.latents,
                generator=generator,
            )
