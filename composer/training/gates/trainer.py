"""The optimisation of gates: one call, one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from composer.diffusion.model import Model
from composer.mixture import Mixture, router_losses
from composer.mixture.learned import TAU
from composer.mixture.rows import Routed
from composer.mixture.stand_in import Weights
from composer.training.attention import attention_for_backward
from composer.training.gates.config import GateTraining
from composer.training.gates.losses import balance_loss, entropy
from composer.training.trainer import MOST_BAD_STEPS, SMOOTHING, Diverged


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one batch gave: its loss, figures for the report, what the gates said, and what those
    decided that let only the strongest experts speak."""

    loss: Tensor
    figures: dict[str, float]
    weights: Weights
    routed: Sequence[Routed] = ()


class Objective(Protocol):
    """What gates are trained for."""

    def batch(self, number: int) -> Said:
        """The loss of the `number`-th batch of the training, counted over all processes.

        A step of the training has as many batches as there are processes times what each
        accumulates; those at the same place of each step are one lane, which one process follows.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """What this process must keep, besides gates and step, to go on as if never stopped."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        ...


@dataclass
class GateTrainer:
    """Trains the learned gates of a mixture; nothing else gets a gradient.

    `processes` is accelerate's PartialState: each process takes its own rows, and the gradients
    are averaged.
    """

    model: Model
    mixture: Mixture
    objective: Objective
    config: GateTraining
    processes: Any
    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    smoothed: dict[str, float] = field(default_factory=dict[str, float])
    entropy: float | None = None
    optimizer: torch.optim.AdamW = field(init=False)
    parameters: dict[str, nn.Parameter] = field(init=False)
    last_good: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = {
            f"{unit}.{name}": parameter
            for unit, gate in self.mixture.gates.items()
            for name, parameter in gate.named_parameters()
        }
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=self.config.learning_rate, weight_decay=0.0
        )
        self.last_good = {name: p.detach().clone() for name, p in self.parameters.items()}

    def advance(self) -> float | None:
        """One step; the loss, or None when the step was skipped for it was not finite.

        The third such step in a row puts the last good gates back and raises Diverged.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        total, by_group = torch.zeros(()), dict[str, float]()
        for part in range(self.config.accumulation):
            number = (self.step * self.config.accumulation + part) * self.processes.num_processes
            with attention_for_backward(self.model.device.type, self._tokens), self._half():
                said = self.objective.batch(number + self.processes.process_index)
                loss = said.loss
                if self.config.balance and said.weights:
                    loss = loss + self.config.balance * balance_loss(said.weights)
                if self.config.router_balance and said.routed:
                    loss = loss + self.config.router_balance * router_losses.balance_loss(
                        said.routed
                    )
                cast(Any, loss / self.config.accumulation).backward()
            total += loss.detach().cpu() / self.config.accumulation
            by_group |= said.figures
            self.entropy = entropy(said.weights)
        value = self._averaged(total)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        self.step += 1
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            self._skip()
            return None
        self.bad_in_a_row = 0
        for name, parameter in self.parameters.items():
            self.last_good[name].copy_(parameter.detach())
        cast(Any, self.optimizer).step()
        with torch.no_grad():
            for gate in self.mixture.gates.values():
                gate.tau.clamp_(*TAU)  # outside, it would never get a gradient again
        for group, figure in {"loss": value, **by_group}.items():
            before = self.smoothed.get(group, figure)
            self.smoothed[group] = SMOOTHING * before + (1 - SMOOTHING) * figure
        return value

    @property
    def learning_rate(self) -> float:
        """Of the step to come: a linear warmup, then half a cosine to zero."""
        config = self.config
        if self.step < config.warmup:
            return config.learning_rate * (self.step + 1) / (config.warmup + 1)
        done = (self.step - config.warmup) / max(config.steps - config.warmup, 1)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    @property
    def _tokens(self) -> int:
        """Of the largest map the model attends over."""
        return (self.model.size // self.model.multiple) ** 2

    def _half(self) -> torch.autocast:
        """The model's products in bfloat16, where that is asked for; gates stay float32."""
        half = self.config.precision == "bfloat16"
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=half)

    def _averaged(self, loss: Tensor) -> float:
        """The loss; with several processes its mean, and the gradients' with it."""
        if self.processes.num_processes == 1:
            return float(loss)
        from accelerate import utils

        for parameter in self.parameters.values():
            if parameter.grad is None:  # a unit that no row reached
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, p.grad) for p in self.parameters.values()]
        both = torch.cat([loss.reshape(1).to(gradients[0]), *(g.flatten() for g in gradients)])
        flat: Tensor = cast(Any, utils).reduce(both, reduction="mean")
        sizes = [gradient.numel() for gradient in gradients]
        means = torch.split(flat[1:], sizes)
        for parameter, mean in zip(self.parameters.values(), means, strict=True):
            parameter.grad = mean.reshape(parameter.shape).clone()
        return float(flat[0])

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
            f" finite loss, at a learning rate of {self.config.learning_rate:.2g}. Train again with"
            " a lower one."
        )
