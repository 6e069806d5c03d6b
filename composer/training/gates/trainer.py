"""The optimisation of gates: one call, one step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from composer.diffusion.model import Model
from composer.mixture import Mixture
from composer.mixture.learned import TAU
from composer.training.attention import attention_for_backward
from composer.training.core import MOST_BAD_STEPS, SMOOTHING, Diverged
from composer.training.gates.losses import Batch, entropy
from composer.training.gates.settings import GateTraining

WARMUP = 10
"""Steps until the highest learning rate."""
CLIP_NORM = 1.0
"""The most that the norm of all gradients may be."""


class GateObjective(Protocol):
    """What gates are trained for: `Judged`, or `ClipGuidance` as published."""

    def batch(self, number: int) -> Batch:
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

    objective: None where no step is to be made.
    processes: accelerate's PartialState: each process takes its own rows, and the gradients are
        averaged.
    """

    model: Model
    mixture: Mixture
    objective: GateObjective | None
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
            for unit, gate in self.mixture.learned_gates.items()
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
        assert self.objective is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        total, figures, entropies = torch.zeros(()), dict[str, float](), 0.0
        count = self.config.accumulation
        for part in range(count):
            number = (self.step * count + part) * self.processes.num_processes
            with attention_for_backward(self.model.device.type, self._tokens), self._half():
                batch = self.objective.batch(number + self.processes.process_index)
                cast(Any, batch.loss / count).backward()
            total += batch.loss.detach().cpu() / count
            for name, figure in batch.figures.items():
                figures[name] = figures.get(name, 0.0) + figure / count
            entropies += entropy(batch.weights) / count
        value, *means = self._averaged([float(total), entropies, *figures.values()])
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), CLIP_NORM)
        self.step += 1
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            self._skip()
            return None
        self.bad_in_a_row = 0
        self.entropy, *parts = means
        for name, parameter in self.parameters.items():
            self.last_good[name].copy_(parameter.detach())
        cast(Any, self.optimizer).step()
        with torch.no_grad():
            for gate in self.mixture.learned_gates.values():
                gate.tau.clamp_(*TAU)  # outside, it would never get a gradient again
        for name, figure in zip(("loss", *figures), (value, *parts), strict=True):
            before = self.smoothed.get(name, figure)
            self.smoothed[name] = SMOOTHING * before + (1 - SMOOTHING) * figure
        return value

    @property
    def learning_rate(self) -> float:
        """Of the step to come: a linear warmup, then half a cosine to zero."""
        config = self.config
        if self.step < WARMUP:
            return config.learning_rate * (self.step + 1) / (WARMUP + 1)
        done = (self.step - WARMUP) / max(config.steps - WARMUP, 1)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    @property
    def _tokens(self) -> int:
        """Of the largest map the model attends over."""
        return (self.model.size // self.model.multiple) ** 2

    def _half(self) -> torch.autocast:
        """The model's products in bfloat16, where that is asked for; gates stay float32."""
        half = self.config.precision == "bfloat16"
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=half)

    def _averaged(self, numbers: list[float]) -> list[float]:
        """These numbers; with several processes their means, and the gradients' with them."""
        if self.processes.num_processes == 1:
            return numbers
        from accelerate import utils

        for parameter in self.parameters.values():
            if parameter.grad is None:  # a unit that no row reached
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, p.grad) for p in self.parameters.values()]
        own = torch.tensor(numbers).to(gradients[0])
        both = torch.cat([own, *(gradient.flatten() for gradient in gradients)])
        flat: Tensor = cast(Any, utils).reduce(both, reduction="mean")
        sizes = [gradient.numel() for gradient in gradients]
        means = torch.split(flat[len(numbers) :], sizes)
        for parameter, mean in zip(self.parameters.values(), means, strict=True):
            parameter.grad = mean.reshape(parameter.shape).clone()
        return [float(mean) for mean in flat[: len(numbers)]]

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
