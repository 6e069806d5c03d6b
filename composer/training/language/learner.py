"""One adapter as it learns: its lesson, its parameters, its own optimizer and counters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from composer.training.core import MOST_BAD_STEPS, SMOOTHING
from composer.training.language.config import LanguageTraining
from composer.training.language.lesson import Lesson


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one step of one adapter gave; `loss` is None when it was skipped."""

    loss: float | None
    router_loss: float
    load: tuple[float, ...]


@dataclass
class Learner:
    """Trains one adapter's parameters, which `groups` holds as an optimizer takes them."""

    config: LanguageTraining
    lesson: Lesson
    parameters: dict[str, nn.Parameter]
    groups: list[dict[str, Any]]
    total: int
    """Steps in all."""
    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    smoothed_loss: float = math.nan
    optimizer: torch.optim.Optimizer = field(init=False)
    last_good: dict[str, Tensor] = field(init=False)
    """The newest parameters that are known to give a finite loss."""

    def __post_init__(self) -> None:
        self._rates = [float(group["lr"]) for group in self.groups]
        self.optimizer = torch.optim.AdamW(self.groups, fused=True)
        self.last_good = {name: p.detach().clone() for name, p in self.parameters.items()}

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def running(self) -> bool:
        """Whether there are steps to make: not all are done, and it has not diverged."""
        return self.step < self.total and not self.diverged

    @property
    def diverged(self) -> bool:
        """Whether three steps in a row had no finite loss; the last good parameters are back."""
        return self.bad_in_a_row >= MOST_BAD_STEPS

    @property
    def learning_rate(self) -> float:
        """That of the step just done."""
        return self.config.learning_rate * self._factor(max(self.step - 1, 0))

    def begin(self) -> None:
        """Forget the gradients and set this step's rates."""
        self.optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._factor(self.step)

    def finish(self, loss: float) -> bool:
        """Step, or change nothing where loss or gradient is not finite; whether it stepped.

        The third such step in a row puts the last good parameters back.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm or math.inf)
        self.step += 1
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            self.skipped += 1
            self.bad_in_a_row += 1
            if self.diverged:
                self.put_back()
            return False
        self.bad_in_a_row = 0
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.last_good[name].copy_(parameter)
        cast(Any, self.optimizer).step()
        done = self.step - self.skipped
        # the mean of what there is at first, a running mean later
        keep = min(SMOOTHING, 1 - 1 / done)
        self.smoothed_loss = loss if done == 1 else keep * self.smoothed_loss + (1 - keep) * loss
        return True

    def put_back(self) -> None:
        """The last good parameters in place of today's."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.last_good[name])

    def _factor(self, step: int) -> float:
        """Of the learning rate: a linear warmup, then constant, half a cosine or a line to 0."""
        warmup, schedule = self.config.warmup, self.config.schedule
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if schedule == "constant":
            return 1.0
        part = (step - warmup) / max(self.total - warmup, 1)
        return 1.0 - part if schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * part)
