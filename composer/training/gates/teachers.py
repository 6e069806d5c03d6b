"""What the frozen experts say, alone and together: the teachers of the distillation."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.model import Model
from composer.diffusion.samplers import build_scheduler, set_steps
from composer.fusions import region_gates
from composer.mixture import Mixture

SAMPLER = "DDIM"
Together = tuple[int, ...]
"""Experts that speak at once, each with weight 1, by index."""


class Teachers:
    """Asks a mixture for its experts one by one, in one batch; the mixture's weights are lost."""

    def __init__(self, model: Model, mixture: Mixture) -> None:
        self.model, self.mixture = model, mixture
        self._texts: dict[tuple[str, Together], Tensor] = {}

    def text(self, prompt: str, experts: Together) -> Tensor:
        """Text vectors (1, tokens, dim) as the text encoder gives them with these experts."""
        key = (prompt, experts)
        if key not in self._texts:
            speak(self.mixture, together(self.mixture, [experts]))
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
        speak(self.mixture, together(self.mixture, [some for some in chosen for _ in prompts]))
        output: Tensor = self.model.unet(
            torch.cat([latents] * len(chosen)).to(self.model.dtype),
            timesteps.repeat(len(chosen)) if timesteps.ndim else timesteps,
            encoder_hidden_states=text,
            return_dict=False,
        )[0].float()
        return output.reshape(len(chosen), len(prompts), *output.shape[1:])

    @torch.no_grad()
    def ask(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompts: Sequence[str],
        experts: Sequence[int | None],
    ) -> Tensor:
        """(len(experts), batch, ...): the prediction with each of `experts` alone."""
        return self.predict(latents, timestep, prompts, [alone(expert) for expert in experts])

    @torch.no_grad()
    def ask_in_places(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompts: Sequence[Sequence[str]],
        maps: Tensor,
    ) -> Tensor:
        """(len(prompts), batch, ...): all experts, each where the maps (batch, experts, h, w) let
        it speak, for each of these lists of prompts."""
        everyone = dict.fromkeys(self.mixture.names, 1.0)
        all_of_them = tuple(range(len(everyone)))
        texts = [self.text(prompt, all_of_them) for some in prompts for prompt in some]
        self.mixture.set_weights(everyone)
        self.mixture.set_gates(region_gates(self.mixture, everyone))
        self.mixture.hear(maps)
        rows = torch.cat([latents] * len(prompts)).to(self.model.dtype)
        output: Tensor = self.model.unet(
            rows, timestep, encoder_hidden_states=torch.cat(texts), return_dict=False
        )[0].float()
        self.mixture.set_weights(everyone)  # takes the gates off again
        return output.reshape(len(prompts), *latents.shape)


def alone(expert: int | None) -> Together:
    """This expert and no other; none at all."""
    return () if expert is None else (expert,)


def together(mixture: Mixture, chosen: Sequence[Together]) -> Tensor:
    """Weights (batch, experts): in each row 1 for these experts, 0 for the others."""
    weights = torch.zeros(len(chosen), len(mixture.names))
    for row, experts in enumerate(chosen):
        weights[row, list(experts)] = 1.0
    return weights


def speak(mixture: Mixture, weights: Tensor) -> None:
    """Let every unit speak with these weights, (batch, experts), until it is told otherwise."""
    for unit in mixture.units.values():
        if unit.module is not None:
            unit.module.gate = None
        # a tensor of its own: what a learned gate said may still be waiting for its gradient
        unit.routing.weights = weights.to(unit.routing.mask.device, copy=True)
        unit.routing.allow(torch.ones_like(unit.routing.mask))


@contextmanager
def speaking(mixture: Mixture) -> Generator[None, None, None]:
    """Gates and constant weights are back after this, whoever was made to `speak` in it."""
    before = mixture.gates
    try:
        yield
    finally:
        mixture.set_gates(before)


class Sampling:
    """DDIM of one teacher, a step at a time, for a batch of prompts."""

    def __init__(self, model: Model, steps: int, noise: Tensor, cfg_scale: float) -> None:
        self.scheduler: Any = build_scheduler(SAMPLER, model.scheduler_config)
        set_steps(self.scheduler, steps, model.device)
        self.latents = noise * self.scheduler.init_noise_sigma
        self.cfg_scale = cfg_scale

    def advance(self, timestep: Tensor, without: Tensor, with_prompt: Tensor) -> None:
        guided = guide(without, with_prompt, self.cfg_scale)
        self.latents = self.scheduler.step(guided, timestep, self.latents, return_dict=False)[0]


def guide(without: Tensor, with_prompt: Tensor, cfg_scale: float) -> Tensor:
    """The prediction that classifier-free guidance follows."""
    return without + cfg_scale * (with_prompt - without)


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
