"""The optimisation itself: one call, one step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.training.attention import attention_for_backward
from composer.training.cache import CaptionCache, LatentCache, text_states
from composer.training.draws import Draw, Draws
from composer.training.muon import Muon
from composer.training.network import Network
from composer.training.objective import Objective
from composer.training.picture_config import PictureTraining
from composer.training.pictures import TrainingPicture

MOST_BAD_STEPS = 3
SMOOTHING = 0.95


class Diverged(ComposerError):
    """Three steps in a row had no finite loss or gradient; the last good factors are back."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Everything a training looks at: the frozen caches and how batches are drawn from them."""

    pictures: list[TrainingPicture]
    latents: LatentCache
    captions: CaptionCache
    draws: Draws
    objective: Objective


@dataclass
class Trainer:
    """Trains a network. `processes` is accelerate's PartialState: each process
    takes its own batches, and the gradients are averaged."""

    model: Model
    network: Network
    lesson: Lesson
    config: PictureTraining
    processes: Any
    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    smoothed_loss: float = math.nan
    optimizer: torch.optim.Optimizer = field(init=False)
    parameters: dict[str, nn.Parameter] = field(init=False)
    last_good: dict[str, Tensor] = field(init=False)
    """The newest factors that are known to give a finite loss."""

    def __post_init__(self) -> None:
        config = self.config
        self.parameters = self.network.parameters()
        groups = self.network.groups()
        self._rates = [float(group["lr"]) for group in groups]
        decay = config.weight_decay
        self.optimizer = (
            Muon(groups, decay=decay)
            if config.optimizer == "muon"
            else torch.optim.AdamW(groups, weight_decay=decay, fused=True)
        )
        self.last_good = {name: p.detach().clone() for name, p in self.parameters.items()}

    def advance(self) -> float | None:
        """One step; the loss averaged over its pictures, or None when the step was skipped.

        A step whose loss or gradient is not finite changes nothing. The third in a row puts the
        last good factors back and raises Diverged.
        """
        self._set_learning_rates()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm or math.inf)
        self.step += 1
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            self._skip()
            return None
        self.bad_in_a_row = 0
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.last_good[name].copy_(parameter)
        cast(Any, self.optimizer).step()
        # The mean of what there is at first, a running mean later.
        done = self.step - self.skipped
        keep = min(SMOOTHING, 1 - 1 / done)
        self.smoothed_loss = loss if done == 1 else keep * self.smoothed_loss + (1 - keep) * loss
        return loss

    @property
    def learning_rate(self) -> float:
        """That of the step just done."""
        return self.config.learning_rate * rate_at(self.config, max(self.step - 1, 0))

    def _skip(self) -> None:
        self.skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row < MOST_BAD_STEPS:
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.last_good[name])
        raise Diverged(
            f"Training diverged: {MOST_BAD_STEPS} steps in a row up to step {self.step} had no"
            f" finite loss, at a learning rate of {self.learning_rate:.2g}. Train again with a"
            " lower learning rate or a longer warmup."
        )

    def _accumulate(self) -> float:
        """Leaves the gradients of this step on the factors and returns its loss."""
        total = torch.zeros((), dtype=torch.float32, device=self.model.device)
        count = self.config.accumulation
        for part in range(count):
            number = (self.step * count + part) * self.processes.num_processes
            draw = self.lesson.draws.batch(number + self.processes.process_index)
            with attention_for_backward(self.model.device.type, draw.noise[0, 0].numel()):
                loss = self._loss(draw)
                cast(Any, loss / count).backward()
            total += loss.detach() / count
        if self.processes.num_processes == 1:
            return float(total)
        return self._average(total)

    def _average(self, loss: Tensor) -> float:
        """Averages the gradients and the loss over the processes, in one exchange."""
        from accelerate import utils

        gradients = [cast(Tensor, factor.grad) for factor in self.parameters.values()]
        both = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
        flat: Tensor = cast(Any, utils).reduce(both)
        sizes = [gradient.numel() for gradient in gradients]
        for parameter, mean in zip(
            self.parameters.values(), torch.split(flat[1:], sizes), strict=True
        ):
            parameter.grad = mean.reshape(parameter.shape).clone()
        return float(flat[0])

    def _loss(self, draw: Draw) -> Tensor:
        lesson, config = self.lesson, self.config
        device, dtype = self.model.device, self.model.dtype
        latents = lesson.latents.take(draw.pictures, draw.flipped, draw.latent_noise)
        noised = lesson.objective.noised(latents, draw.noise, draw.timesteps)
        target = lesson.objective.target(latents, draw.noise, draw.timesteps).to(device)
        chosen = [lesson.pictures[index] for index in draw.pictures]
        weights = lesson.objective.weights(draw.timesteps, config.min_snr_gamma) * torch.tensor(
            [p.weight * (config.prior_weight if p.is_prior else 1.0) for p in chosen]
        )
        captions = [
            "" if dropped else picture.caption
            for dropped, picture in zip(draw.dropped, chosen, strict=True)
        ]
        devices = [device] if device.type == "cuda" else []
        half = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
        apart = cast(Any, torch.random).fork_rng(devices=devices)
        with apart, self.network.listen() as tape, half:
            cast(Any, torch).manual_seed(draw.seed)
            predicted: Tensor = self.model.unet(
                noised.to(device, dtype),
                draw.timesteps.to(device),
                encoder_hidden_states=self._states(captions).to(device, dtype),
                return_dict=False,
            )[0]
        errors = (predicted.float() - target).square().mean(dim=(1, 2, 3))
        return (errors * weights.to(device)).mean() + self.network.router_loss(tape).to(device)

    def _states(self, captions: list[str]) -> Tensor:
        cache = self.lesson.captions
        rows = cache.rows(captions)
        if cache.states is not None:
            return cache.states[rows]
        return text_states(self.model.text_encoder, cache.ids[rows])

    def _set_learning_rates(self) -> None:
        factor = rate_at(self.config, self.step)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor


def rate_at(config: PictureTraining, step: int) -> float:
    """Linear warmup, then half a cosine down to zero just after the last step, or constant."""
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(
        math.pi * (step - config.warmup) / max(config.steps - config.warmup, 1)
    )
