"""What gates learn from: noisy latents on the teachers' own ways, and what the teacher says there.

Nothing but the frozen model is needed: no photographs, no CLIP, no decoding.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composer.diffusion.conditioning import split_into_chunks
from composer.diffusion.model import Model
from composer.diffusion.regions import Regions
from composer.errors import ComposerError
from composer.mixture import Mixture
from composer.training.draws import generator_for
from composer.training.gates.config import GateTraining
from composer.training.gates.teachers import Sampling, Teachers, guide, latent_shape, speak

COMPOSED, NEUTRAL = "together", "neutral"
AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One group of prompts and who teaches it: an expert alone, all together, or the base."""

    group: str
    prompts: tuple[str, ...]
    expert: int | None = None


@dataclass
class Memory:
    """Rows to learn from, on the CPU in float32.

    latents: (rows, channels, height, width).
    timesteps: (rows,).
    targets: what the teacher says, without the prompt and with it, (rows, 2, channels, ...).
    base: what the bare model says, likewise.
    """

    latents: Tensor
    timesteps: Tensor
    targets: Tensor
    base: Tensor
    groups: list[str]
    prompts: list[str]
    regions: Tensor | None = None
    """Where each expert's words act, (rows, experts, h, w), for those who hear it."""

    def rows_of(self, group: str) -> list[int]:
        return [row for row, its in enumerate(self.groups) if its == group]

    def strength(self, group: str, cfg_scale: float) -> tuple[float, float]:
        """The mean squares by which the teacher of a group differs from the bare model: with the
        prompt, and guided."""
        rows = self.rows_of(group)
        changes = self.targets[rows] - self.base[rows]
        guided = guide(changes[:, 0], changes[:, 1], cfg_scale)
        return float(changes[:, 1].square().mean()), float(guided.square().mean())


def lessons(mixture: Mixture, config: GateTraining) -> list[Lesson]:
    """The groups that count, each with its prompts."""
    found: list[Lesson] = []
    if config.keep > 0:
        found += [
            Lesson(group=name, prompts=config.alone[name], expert=index)
            for index, name in enumerate(mixture.names)
        ]
    if config.compose > 0:
        found.append(Lesson(group=COMPOSED, prompts=config.prompts))
    if config.rest > 0:
        found.append(Lesson(group=NEUTRAL, prompts=config.neutral))
    return found


def check_prompts(model: Model, mixture: Mixture, config: GateTraining) -> None:
    """Refuse what cannot be learnt from.

    Raises:
        ComposerError: a group without prompts, an expert without its own, a prompt too long.
    """
    unknown = sorted(set(config.alone) - set(mixture.names))
    if unknown:
        raise ComposerError(
            f"There are prompts for {unknown[0]!r}, which is none of the experts: "
            f"{', '.join(mixture.names)}."
        )
    draws_itself = config.objective == "clip"
    if config.keep > 0 or draws_itself:
        for name in mixture.names:
            if not config.alone.get(name):
                raise ComposerError(f"There is no prompt for {name!r} alone: give at least one.")
    follows_own = config.objective != "distill"
    if (config.compose > 0 or follows_own) and not config.prompts:
        raise ComposerError("There is no prompt that names all experts: give at least one.")
    if config.rest > 0 and not config.neutral:
        raise ComposerError(
            "There is no prompt that names no expert: give at least one, or set rest to 0."
        )
    used = [prompt for lesson in lessons(mixture, config) for prompt in lesson.prompts]
    if follows_own:
        used += config.prompts
    if draws_itself:
        used += [prompt for prompts in config.alone.values() for prompt in prompts]
    for prompt in used:
        if len(split_into_chunks(model, prompt)) > 1:
            raise ComposerError(
                f"The prompt {prompt!r} is longer than the {model.token_limit - 2} tokens that "
                "the text encoder reads at once: shorten it."
            )


def remember(
    model: Model, mixture: Mixture, config: GateTraining, regions: Regions | None = None
) -> Generator[tuple[int, int], None, Memory]:
    """Sample the teachers; yields (samplings done, in all) after each step, returns the rows."""
    plan = [
        (lesson, range(first, min(first + AT_ONCE, config.trajectories)))
        for lesson in lessons(mixture, config)
        for first in range(0, config.trajectories, AT_ONCE)
    ]
    total = len(plan) * config.teacher_steps
    teachers = Teachers(model, mixture)
    parts: list[Memory] = []
    for done, (lesson, numbers) in enumerate(plan):
        sampled = _sample(model, teachers, config, lesson, numbers, regions)
        for step, rows in enumerate(sampled, start=1):
            parts.append(rows)
            yield done * config.teacher_steps + step, total
    return joined(parts)


def _sample(
    model: Model,
    teachers: Teachers,
    config: GateTraining,
    lesson: Lesson,
    numbers: Sequence[int],
    regions: Regions | None,
) -> Generator[Memory, None, None]:
    """The rows of one batch of one teacher's samplings, a step at a time."""
    drawn = [generator_for(config.seed, f"gates {lesson.group}", n) for n in numbers]
    noise = torch.stack([torch.randn(latent_shape(model), generator=g) for g in drawn]).to(
        model.device
    )
    prompts = [lesson.prompts[n % len(lesson.prompts)] for n in numbers]
    nothing = [""] * len(prompts)
    sampling = Sampling(model, config.teacher_steps, noise, config.cfg_scale)
    if regions is not None:  # the words are read with all of them
        speak(teachers.mixture, torch.ones(1, len(teachers.mixture.names)))
    hearing = regions and regions.hearing(prompts)
    everyone: list[int | None] = [None, *range(len(teachers.mixture.names))]
    for timestep in sampling.scheduler.timesteps:
        latents = sampling.latents
        maps = None
        if hearing is not None:
            speak(teachers.mixture, torch.ones(1, len(teachers.mixture.names)))
            maps = hearing.maps(latents, timestep)
        if lesson.group == COMPOSED and maps is not None and config.teacher == "regions":
            base = teachers.ask(latents, timestep, prompts, [None])[0]
            bare = teachers.ask(latents, timestep, nothing, [None])[0]
            without, target = teachers.ask_in_places(latents, timestep, (nothing, prompts), maps)
        elif lesson.group == COMPOSED:
            said = teachers.ask(latents, timestep, prompts, everyone)
            unsaid = teachers.ask(latents, timestep, nothing, everyone)
            target, without = _together(said), _together(unsaid)
            base, bare = said[0], unsaid[0]
        else:
            base, target = teachers.ask(latents, timestep, prompts, [None, lesson.expert])
            bare, without = teachers.ask(latents, timestep, nothing, [None, lesson.expert])
        yield Memory(
            latents=latents.cpu(),
            timesteps=timestep.cpu().expand(len(prompts)),
            targets=torch.stack([without, target], dim=1).cpu(),
            base=torch.stack([bare, base], dim=1).cpu(),
            groups=[lesson.group] * len(prompts),
            prompts=prompts,
            regions=None if maps is None else maps.cpu(),
        )
        sampling.advance(timestep, without, target)


def _together(said: Tensor) -> Tensor:
    """The composed teacher, v_0 + sum_i (v_i - v_0): the changes that the experts make to the
    prediction, added up; each was made without the others' interference. said: (1 + experts, ...),
    the base first."""
    return said[0] + (said[1:] - said[0]).sum(0)


def joined(parts: Sequence[Memory]) -> Memory:
    """The rows of all parts, in their order."""
    regions = [part.regions for part in parts if part.regions is not None]
    return Memory(
        latents=torch.cat([part.latents for part in parts]),
        timesteps=torch.cat([part.timesteps for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
        base=torch.cat([part.base for part in parts]),
        groups=[group for part in parts for group in part.groups],
        prompts=[prompt for part in parts for prompt in part.prompts],
        regions=torch.cat(regions) if regions else None,
    )
