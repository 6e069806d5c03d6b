"""From noise to latents: the only loop over a sampler's steps, and the only guidance.

    v = v_without + cfg_scale * (v_with - v_without)

is classifier-free guidance (arXiv 2207.12598) of the predictions without and with the prompt.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composer.diffusion.conditioning import Text
from composer.diffusion.model import Model
from composer.diffusion.samplers import AUTOMATIC, build_scheduler, set_steps
from composer.errors import ComposerError


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoised:
    """One step of `denoise`, number `index` from 0.

    timestep: a scalar, fractional with some samplers.
    noisy: (batch, channels, h, w), what the prediction was made from.
    output: the prediction, of the same shape.
    latents: after the step.
    """

    scheduler: Any
    index: int
    timestep: Tensor
    noisy: Tensor
    output: Tensor
    latents: Tensor

    @property
    def clean(self) -> Tensor:
        """The clean latents that this step's prediction points to."""
        return to_clean(self.scheduler, self.output, self.timestep, self.noisy)


@dataclass(frozen=True, kw_only=True, eq=False)
class Beginning:
    """Clean latents from which a sampling begins, in place of noise alone.

    latents: (batch, channels, h, w).
    strength: the part of the steps that is made, the last ones; above 0, at most 1.
    redrawn: (batch or 1, 1, h, w), 1 where the picture is drawn anew and 0 where it stays; None is
        everywhere.
    """

    latents: Tensor
    strength: float
    redrawn: Tensor | None = None

    def first(self, scheduler: Any) -> int:
        """The number of the first step.

        Raises:
            ComposerError: so small a part is less than one step.
        """
        steps = int(scheduler.num_inference_steps)
        made = min(int(steps * self.strength), steps)
        if not made:
            raise ComposerError(
                f"A strength of {self.strength:g} is less than one of {steps} steps: give at least "
                f"{math.ceil(100 / steps) / 100:g}, or more steps."
            )
        return (steps - made) * int(getattr(scheduler, "order", 1))

    def noised(self, scheduler: Any, noise: Tensor, index: int) -> Tensor:
        """The latents as noisy as they are before this step; clean after the last."""
        if index >= len(scheduler.timesteps):
            return self.latents
        times = scheduler.timesteps[index : index + 1].repeat(len(noise))
        noised: Tensor = scheduler.add_noise(self.latents, noise, times)
        return noised


@torch.no_grad()
def denoise(
    scheduler: Any,
    noise: Tensor,
    predict: Callable[[Tensor, Tensor, int], Tensor],
    generators: Sequence[torch.Generator] = (),
    beginning: Beginning | None = None,
) -> Iterator[Denoised]:
    """Yield after each step of the scheduler, without gradients.

    noise: (batch, channels, h, w), standard normal.
    predict: gives the prediction, float32, from noisy latents, the timestep and the step's number.
    generators: one for each row, for samplers that draw noise at every step.
    beginning: what to begin from (SDEdit, arXiv 2108.01073); None is noise alone.
    """
    first = 0
    latents: Tensor = noise * scheduler.init_noise_sigma
    if beginning is not None:
        first = beginning.first(scheduler)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        latents = beginning.noised(scheduler, noise, first)
    for index, timestep in enumerate(scheduler.timesteps[first:], first):
        noisy: Tensor = scheduler.scale_model_input(latents, timestep)
        output = predict(noisy, timestep, index)
        latents = advance(scheduler, output, timestep, latents, generators)
        if beginning is not None and beginning.redrawn is not None:
            kept = beginning.noised(scheduler, noise, index + 1)
            latents = torch.lerp(kept, latents, beginning.redrawn)
        yield Denoised(
            scheduler=scheduler,
            index=index,
            timestep=timestep,
            noisy=noisy,
            output=output,
            latents=latents,
        )


def advance(
    scheduler: Any,
    output: Tensor,
    timestep: Tensor,
    latents: Tensor,
    generators: Sequence[torch.Generator] = (),
) -> Tensor:
    """The latents after one step of the scheduler along this prediction."""
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    drawing = {"generator": list(generators)} if generators and takes_generator else {}
    moved: Tensor = scheduler.step(output, timestep, latents, **drawing, return_dict=False)[0]
    return moved


def predict(
    model: Model, noisy: Tensor, timestep: Tensor, text: Text, cfg_scale: float = 1.0
) -> Tensor:
    """What the U-Net predicts, float32, shaped as `noisy` (batch, channels, h, w).

    timestep: one for all, or (batch,).
    text: of batch rows; or of 2 batch, those without the prompt first, for guidance by `cfg_scale`.
        A U-Net that has learned guidance reads the scale itself, beside rows with the prompt alone.
    """
    guided = len(text) == 2 * len(noisy)
    if guided:
        noisy = torch.cat([noisy, noisy])
        timestep = torch.cat([timestep, timestep]) if timestep.ndim else timestep
    output: Tensor = model.unet(
        noisy.to(model.dtype),
        timestep,
        encoder_hidden_states=text.states,
        timestep_cond=_scale(model, cfg_scale, len(noisy)),
        added_cond_kwargs=_added(model, noisy, text),
        return_dict=False,
    )[0].float()
    if not guided:
        return output
    without, with_prompt = output.chunk(2)
    return guide(without, with_prompt, cfg_scale)


def _scale(model: Model, cfg_scale: float, rows: int) -> Tensor | None:
    """What a U-Net reads of the guidance scale that it has learned (arXiv 2310.04378, section 4.2):
    (rows, time_cond_proj_dim); None for any other."""
    if not model.guides_itself:
        return None
    from diffusers.models.embeddings import get_timestep_embedding

    scales = torch.full((rows,), (cfg_scale - 1) * 1000, device=model.device)
    width = int(model.unet.config.time_cond_proj_dim)
    return get_timestep_embedding(scales, width, downscale_freq_shift=1).to(model.dtype)


def _added(model: Model, noisy: Tensor, text: Text) -> dict[str, Tensor] | None:
    """The pooled text and the picture's sizes, where the family's U-Net asks for them.

    time_ids: (batch, 6), the size that the picture is to have come from, where it was cut out, and
        its own; the first and the last are what is drawn, and nothing is cut off.
    """
    if text.pooled is None:
        return None
    height, width = (side * model.multiple for side in noisy.shape[-2:])
    sizes = torch.tensor([height, width, 0, 0, height, width], device=noisy.device)
    return {"text_embeds": text.pooled, "time_ids": sizes.to(model.dtype).expand(len(noisy), 6)}


def guide(without: Tensor, with_prompt: Tensor, cfg_scale: float) -> Tensor:
    """The prediction of classifier-free guidance."""
    return without + cfg_scale * (with_prompt - without)


def to_clean(scheduler: Any, output: Tensor, timestep: Tensor, noisy: Tensor) -> Tensor:
    """The clean latents x_0 that a prediction points to, shaped as `noisy`, with its gradient.

    With x_t = sqrt(a) x_0 + sqrt(1 - a) noise, a being alpha-bar at the timestep,
    x_0 = (x_t - sqrt(1 - a) e) / sqrt(a) for epsilon and sqrt(a) x_t - sqrt(1 - a) v for
    v-prediction.

    timestep: one for all, or (batch,).
    """
    known: Tensor = scheduler.alphas_cumprod
    places = timestep.round().long().clamp(0, len(known) - 1)
    kept = known[places.to(known.device)].to(noisy).reshape(-1, *[1] * (noisy.ndim - 1))
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return signal * noisy - spread * output
    if kind == "sample":
        return output
    return (noisy - spread * output) / signal


def scheduler_for(model: Model, sampler: str, steps: int, schedule: str = AUTOMATIC) -> Any:
    """A fresh scheduler of this sampler and schedule for the model, set to `steps`."""
    scheduler = build_scheduler(sampler, model.scheduler_config, schedule)
    set_steps(scheduler, steps, model.device)
    return scheduler


def latent_shape(model: Model) -> tuple[int, int, int]:
    """Of one picture of the model's own size: (channels, height, width)."""
    side = model.size // model.multiple
    return model.latent_channels, side, side


def draw_noise(
    seeds: Sequence[int], shape: tuple[int, int, int]
) -> tuple[Tensor, list[torch.Generator]]:
    """First noise (seeds, *shape), each row from a CPU generator of its own, and the generators."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=g) for g in generators]), generators
