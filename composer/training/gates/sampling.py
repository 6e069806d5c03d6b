"""Samplings that gates learn from: DDIM by hand, a step at a time, and what experts predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from composer.diffusion.conditioning import encode_prompts, split_into_chunks
from composer.diffusion.model import Model
from composer.diffusion.samplers import build_scheduler, set_steps
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


class Sampling:
    """One DDIM sampling of a batch under classifier-free guidance; STEPS and CFG_SCALE unless
    others are given."""

    def __init__(
        self,
        model: Model,
        noise: Tensor,
        *,
        steps: int | None = None,
        cfg_scale: float | None = None,
    ) -> None:
        self.scheduler: Any = build_scheduler(SAMPLER, model.scheduler_config)
        set_steps(self.scheduler, steps or STEPS, model.device)
        self.latents = noise * self.scheduler.init_noise_sigma
        self._cfg_scale = cfg_scale

    def advance(self, timestep: Tensor, without: Tensor, with_prompt: Tensor) -> None:
        """One step along the guided prediction."""
        guided = guide(without, with_prompt, self._cfg_scale)
        self.latents = self.scheduler.step(guided, timestep, self.latents, return_dict=False)[0]


def guide(without: Tensor, with_prompt: Tensor, cfg_scale: float | None = None) -> Tensor:
    """The prediction that classifier-free guidance follows; the scale of None is CFG_SCALE."""
    scale = CFG_SCALE if cfg_scale is None else cfg_scale
    return without + scale * (with_prompt - without)


def latent_shape(model: Model) -> tuple[int, int, int]:
    """Of one picture of the model's own size: (channels, height, width)."""
    side = model.size // model.multiple
    return model.latent_channels, side, side


def to_clean(scheduler: Any, output: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """The clean latents that a prediction points to, with a gradient.

    timestep: one for all, or (batch,).
    """
    kept = scheduler.alphas_cumprod[timestep.long().cpu()].to(latents)
    kept = kept.reshape(-1, *[1] * (latents.ndim - 1))
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return signal * latents - spread * output
    if kind == "sample":
        return output
    return (latents - spread * output) / signal


@dataclass
class Texts:
    """Text vectors of prompts of one chunk each, as the gated model reads them.

    learning: whether the text encoder's gates learn: then each call reads the prompts anew, with a
        gradient; otherwise each prompt is read once.
    """

    model: Model
    learning: bool
    _known: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(prompts, tokens, dim), as `encode_prompts` gives them."""
        if self.learning:
            ids = torch.tensor([split_into_chunks(self.model, prompt)[0] for prompt in prompts])
            read = self.model.text_encoder(ids.to(self.model.device))
            return read.last_hidden_state.to(self.model.dtype)
        with torch.no_grad():
            for prompt in set(prompts) - self._known.keys():
                self._known[prompt] = encode_prompts(self.model, prompt, None).positive
        return torch.cat([self._known[prompt] for prompt in prompts])


class Sums:
    """Predictions of plain sums of the mixture's experts, several sums in one batch.

    While it is used every row of the batch has constant weights of its own (`Mixture.weigh_rows`).
    """

    def __init__(self, model: Model, mixture: Mixture) -> None:
        self.model, self.mixture = model, mixture
        self._texts: dict[tuple[str, Together], Tensor] = {}

    def text(self, prompt: str, experts: Together) -> Tensor:
        """Text vectors (1, tokens, dim) as the text encoder gives them with these experts."""
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
            text = torch.cat([self.text(p, some) for some in chosen for p in prompts])
        self.mixture.weigh_rows(self._weights([some for some in chosen for _ in prompts]))
        output: Tensor = self.model.unet(
            torch.cat([latents] * len(chosen)).to(self.model.dtype),
            timesteps.repeat(len(chosen)) if timesteps.ndim else timesteps,
            encoder_hidden_states=text,
            return_dict=False,
        )[0].float()
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
    model, nothing = sums.model, [""] * PICTURES
    for expert, own in enumerate(known):
        prompts = [own[n % len(own)] for n in range(PICTURES)]
        generator = generator_for(seed, purpose, expert)
        noise = torch.randn((PICTURES, *latent_shape(model)), generator=generator)
        sampling = Sampling(model, noise.to(model.device))
        for step, timestep in enumerate(sampling.scheduler.timesteps):
            latents = sampling.latents
            with torch.no_grad():
                without, with_prompt = (
                    sums.predict(latents, timestep, some, [(expert,)])[0]
                    for some in (nothing, prompts)
                )
            guided = guide(without, with_prompt)
            clean = to_clean(sampling.scheduler, guided, timestep, latents)
            sampling.advance(timestep, without, with_prompt)
            yield DrawnAlone(
                expert=expert,
                experts=len(known),
                step=step,
                prompts=prompts,
                clean=clean,
                latents=sampling.latents,
                generator=generator,
            )
