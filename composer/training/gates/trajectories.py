"""Pictures on their way under gates: what the gates said, and how far other predictions are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from composer.diffusion.conditioning import encode_prompts, split_into_chunks
from composer.diffusion.model import Model
from composer.diffusion.regions import Regions
from composer.errors import ComposerError
from composer.mixture import Mixture
from composer.mixture.stand_in import Weights
from composer.training.gates.nearest import Nearest
from composer.training.gates.sampling import Sampling, guide, latent_shape

AT_ONCE = 8
"""Pictures in one batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """Sums of what gates said while they saw the prompt, by unit.

    steps: of one sampling.
    sums: (steps, experts); where a gate has spoken before any step, (1, experts).
    counts: how many weights each sum holds, (steps, 1) or (1, 1).
    """

    steps: int
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    counts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def add(self, said: Weights, pictures: int, step: int | None = None) -> None:
        """Those of the last `pictures` rows, which saw the prompt; `step` None is before any."""
        for unit, weights in said:
            rows = weights.detach().float().cpu()
            if rows.ndim == 3:  # (batch, tokens, experts)
                rows = rows.mean(1)
            rows = rows[-pictures:]
            places = 1 if step is None else self.steps
            if unit not in self.sums:
                self.sums[unit] = torch.zeros(places, rows.shape[1])
                self.counts[unit] = torch.zeros(places, 1)
            self.sums[unit][step or 0] += rows.sum(0)
            self.counts[unit][step or 0] += len(rows)

    def mean(self, steps: range) -> dict[str, list[float]]:
        """Each unit's weights averaged over pictures and these steps, in the experts' order."""
        found: dict[str, list[float]] = {}
        for unit, sums in self.sums.items():
            some = slice(None) if len(sums) < self.steps else slice(steps.start, steps.stop)
            counts = self.counts[unit][some].sum(0).clamp_min(1)
            found[unit] = [float(weight) for weight in sums[some].sum(0) / counts]
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectories:
    """One batch of pictures, sampled under gates by DDIM; all on the CPU in float32.

    latents, predictions: of each step, (batch, channels, height, width); predictions are guided.
    timesteps: of each step.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    cfg_scale: float
    latents: list[Tensor] = field(default_factory=list[Tensor])
    predictions: list[Tensor] = field(default_factory=list[Tensor])
    timesteps: list[Tensor] = field(default_factory=list[Tensor])

    def text(self, model: Model) -> Tensor:
        """Text vectors (batch or 2 batch, tokens, dim) as the model is; without it first."""
        guided = self.cfg_scale > 1
        known = {p: encode_prompts(model, p, "" if guided else None) for p in self.prompts}
        told = [known[prompt] for prompt in self.prompts]
        without = [each.negative for each in told if each.negative is not None]
        return torch.cat([*without, *(each.positive for each in told)])

    def sample(
        self,
        model: Model,
        mixture: Mixture,
        heard: Heard,
        nearest: Nearest,
        regions: Regions | None = None,
    ) -> Iterator[None]:
        """Sample with the mixture's gates; yields after each step.

        heard, nearest: are told what the gates say, and what their sites see meanwhile.
        regions: finds out where each expert's words act, for gates that hear it.

        Raises:
            ComposerError: the latents are no longer numbers.
        """
        with mixture.record_weights() as said:
            for prompt in self.prompts:
                encode_prompts(model, prompt, None)
        heard.add(said, 1)
        hearing = regions and regions.hearing(self.prompts)
        text = self.text(model)
        shape = latent_shape(model)
        drawn = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        noise = torch.stack([torch.randn(shape, generator=g) for g in drawn]).to(model.device)
        sampling = Sampling(model, noise, steps=heard.steps, cfg_scale=self.cfg_scale)
        for step, timestep in enumerate(sampling.scheduler.timesteps):
            latents = sampling.latents
            if hearing is not None:
                hearing(latents, timestep, step)
            with mixture.record_weights() as said, nearest.watching(step, len(self.prompts)):
                without, with_prompt = predict(model, latents, timestep, text, self.cfg_scale)
            heard.add(said, len(self.prompts), step)
            self.latents.append(latents.cpu())
            self.timesteps.append(timestep.cpu())
            self.predictions.append(self._guided(without, with_prompt).cpu())
            if not bool(self.predictions[-1].isfinite().all()):
                raise ComposerError(
                    f"What the gates predict at step {step + 1} is no longer numbers: load the "
                    "model in float32, or train the gates again."
                )
            sampling.advance(timestep, without, with_prompt)
            yield

    def distance(self, model: Model, step: int, text: Tensor) -> Tensor:
        """||v_gated - v||^2 of each picture, (batch,), with v as the model is now.

        text: what `text` gives as the model is now.
        """
        latents = self.latents[step].to(model.device)
        timestep = self.timesteps[step].to(model.device)
        now = self._guided(*predict(model, latents, timestep, text, self.cfg_scale)).cpu()
        return (now - self.predictions[step]).square().flatten(1).sum(1)

    def _guided(self, without: Tensor, with_prompt: Tensor) -> Tensor:
        return guide(without, with_prompt, self.cfg_scale)


@torch.no_grad()
def predict(
    model: Model, latents: Tensor, timestep: Tensor, text: Tensor, cfg_scale: float
) -> tuple[Tensor, Tensor]:
    """The predictions without and with the prompt, float32; the same one where none is asked for.

    text: (batch or 2 batch, tokens, dim), without the prompt first.
    """
    rows = torch.cat([latents] * (len(text) // len(latents))).to(model.dtype)
    output: Tensor = model.unet(rows, timestep, encoder_hidden_states=text, return_dict=False)[0]
    output = output.float()
    if cfg_scale > 1:
        without, with_prompt = output.chunk(2)
        return without, with_prompt
    return output, output


def plan_trajectories(
    model: Model, prompts: Sequence[str], *, pictures: int, seed: int, cfg_scale: float
) -> list[Trajectories]:
    """Batches of `pictures` pictures, each with the next prompt and the next seed.

    Prompts of several lengths (in chunks of tokens) are not in one batch.
    """
    by_length: dict[int, list[int]] = {}
    for index in range(pictures):
        length = len(split_into_chunks(model, prompts[index % len(prompts)]))
        by_length.setdefault(length, []).append(index)
    return [
        Trajectories(
            prompts=tuple(prompts[i % len(prompts)] for i in some[first : first + AT_ONCE]),
            seeds=tuple(seed + i for i in some[first : first + AT_ONCE]),
            cfg_scale=cfg_scale,
        )
        for some in by_length.values()
        for first in range(0, len(some), AT_ONCE)
    ]
