"""What all trainings have in common: the step, what is skipped, the rate, the way to the file.

A training is a subclass of `Trainer`, which gives the loss and the file. The gradients of a step
are added up over its batches and averaged over the processes, then clipped. A step whose loss or
gradient is not finite changes nothing; the third in a row puts back what was last good and ends
the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from composer.clock import Clock
from composer.errors import ComposerError
from composer.training.attention import attention_for_backward
from composer.training.processes import any_process, gathered
from composer.training.progress import Progress
from composer.training.settings import Training
from composer.training.state import load_state, save_state

MOST_BAD_STEPS = 3
SMOOTHING = 0.95

Report = TypeVar("Report", bound=Progress)


class Diverged(ComposerError):
    """Three steps in a row had no finite loss or gradient; what was last good is in the file."""


def learning_rate_factor(
    step: int,
    total: int,
    *,
    warmup: int,
    schedule: Literal["constant", "cosine", "linear"],
) -> float:
    """What the highest learning rate is multiplied by in a step, counted from 0.

    A linear warmup; then constant, half a cosine or a line down to zero just after the last step.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    part = min((step - warmup) / max(total - warmup, 1), 1.0)
    return 1.0 - part if schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * part)


@dataclass(kw_only=True)
class Learner:
    """Parameters that learn, with their optimizer, counters and averages.

    optimizer: over `parameters`; the rates of its groups are the highest ones.
    facts: what a state to resume from must share besides the settings, as JSON, by the words of
        the message where it does not ("another model").
    total: steps in all. step: those done, of which `skipped` changed nothing.
    loss: of the last step; None where it was skipped. figures: further numbers of the last step
        that was not.
    smoothed: both, the loss as "loss": the mean of all at first, a running mean later.
    last_good: the newest parameters that are known to give a finite loss.
    after: called after each step of the optimizer.
    """

    config: Training
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    total: int
    facts: Mapping[str, object]
    name: str = ""
    warmup: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    clip_norm: float | None = 1.0
    after: Callable[[], None] = lambda: None
    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    loss: float | None = None
    figures: dict[str, float] = field(default_factory=dict[str, float])
    smoothed: dict[str, float] = field(default_factory=dict[str, float])
    last_good: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.last_good = {name: p.detach().clone() for name, p in self.parameters.items()}

    @property
    def running(self) -> bool:
        """Whether there are steps to make: not all are done, and it has not diverged."""
        return self.step < self.total and not self.diverged

    @property
    def diverged(self) -> bool:
        """Whether three steps in a row had no finite loss, or none of a shorter training had."""
        return self.bad_in_a_row >= MOST_BAD_STEPS or 0 < self.total <= self.skipped

    @property
    def learning_rate(self) -> float:
        """That of the step just done."""
        return self.config.learning_rate * self._factor(max(self.step - 1, 0))

    @property
    def smoothed_loss(self) -> float:
        """NaN before the first step."""
        return self.smoothed.get("loss", math.nan)

    def begin(self) -> None:
        """Forget the gradients and set this step's rates."""
        self.optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._factor(self.step)

    def finish(self, processes: Any, loss: float, figures: Mapping[str, float]) -> None:
        """Step along the gradients that are there, or skip the step."""
        for parameter in self.parameters.values():
            if parameter.grad is None:  # a unit that no row reached, an expert without a token
                parameter.grad = torch.zeros_like(parameter)
        if processes.num_processes > 1:
            loss, *means = self._averaged([loss, *figures.values()])
            figures = dict(zip(figures, means, strict=True))
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm or math.inf)
        self.step += 1
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            self.loss = None
            self.skipped += 1
            self.bad_in_a_row += 1
            if self.diverged:
                with torch.no_grad():
                    for name, parameter in self.parameters.items():
                        parameter.copy_(self.last_good[name])
            return
        self.bad_in_a_row = 0
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.last_good[name].copy_(parameter)
        cast(Any, self.optimizer).step()
        self.after()
        self.loss, self.figures = loss, dict(figures)
        keep = min(SMOOTHING, 1 - 1 / (self.step - self.skipped))
        for name, number in {"loss": loss, **figures}.items():
            if math.isfinite(number):
                before = self.smoothed.get(name, number)
                self.smoothed[name] = keep * before + (1 - keep) * number

    def _averaged(self, numbers: list[float]) -> list[float]:
        """The means of these numbers over the processes, and of the gradients, in one exchange."""
        from accelerate import utils

        gradients = [cast(Tensor, p.grad) for p in self.parameters.values()]
        own = torch.tensor(numbers, dtype=torch.float32, device=gradients[0].device)
        flat: Tensor = cast(Any, utils).reduce(
            torch.cat([own, *(gradient.float().flatten() for gradient in gradients)]),
            reduction="mean",
        )
        sizes = [gradient.numel() for gradient in gradients]
        parts = torch.split(flat[len(numbers) :], sizes)
        for parameter, part in zip(self.parameters.values(), parts, strict=True):
            parameter.grad = part.reshape(parameter.shape).to(parameter.dtype).clone()
        return [float(mean) for mean in flat[: len(numbers)]]

    def _factor(self, step: int) -> float:
        return learning_rate_factor(step, self.total, warmup=self.warmup, schedule=self.schedule)


class Trainer(Generic[Report]):
    """One training, or several side by side on one model: from the first step to the files.

    learners: what learns. processes: accelerate's PartialState: each process takes its own batches.
    device, tokens: where the model is, and of how many tokens its longest attention is.

    A subclass gives `loss` and `write`, and `advance` in place of `loss` where several learn.
    """

    reports: ClassVar[type[Progress]] = Progress

    def __init__(
        self,
        learners: Sequence[Learner],
        processes: Any,
        *,
        device: torch.device,
        tokens: int = 0,
    ) -> None:
        self.learners, self.processes = list(learners), processes
        self.device, self.tokens = device, tokens

    @property
    def learner(self) -> Learner:
        """The only one."""
        (learner,) = self.learners
        return learner

    def loss(self, number: int) -> tuple[Tensor, dict[str, float]]:
        """That of the `number`-th batch of the training, counted over all processes, with a
        gradient; and further figures to be averaged."""
        raise NotImplementedError

    def around(self) -> AbstractContextManager[object]:
        """What `loss` and its backward pass run in."""
        return nullcontext()

    def write(self, learner: Learner) -> dict[str, Any]:
        """Write what was learned so far to its file; further fields of the last report."""
        raise NotImplementedError

    def look(self, learner: Learner) -> dict[str, Any]:
        """After a step, in the first process: a preview or a measurement for the report."""
        return {}

    def details(self, learner: Learner) -> dict[str, Any]:
        """Further fields of every report of this kind of training."""
        return {}

    def own(self) -> dict[str, Tensor]:
        """What this process must keep, besides the learners, to go on as if never stopped."""
        return {}

    def load_own(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `own` gave."""

    def advance(self, active: Sequence[Learner]) -> None:
        """One step of each."""
        (learner,) = active
        learner.begin()
        count, size = learner.config.accumulation, self.processes.num_processes
        total = torch.zeros((), device=self.device)
        figures: dict[str, float] = {}
        for part in range(count):
            number = (learner.step * count + part) * size + self.processes.process_index
            with attention_for_backward(self.device.type, self.tokens), self.around():
                loss, more = self.loss(number)
                cast(Any, loss / count).backward()
            total += loss.detach() / count
            for name, figure in more.items():
                figures[name] = figures.get(name, 0.0) + figure / count
        learner.finish(self.processes, float(total), figures)

    def run(self, cancelled: Callable[[], bool]) -> Iterator[Report]:
        """All steps that are left, a report after each; then the files.

        Raises:
            Diverged: at the end; the others have learned and what was last good is written.
            ComposerError: the state to resume from is broken or another training's.
        """
        for learner in self.learners:
            if learner.config.resume and learner.config.checkpoint.is_file():
                self.load_own(load_state(learner, self.processes))
        clock = Clock(sum(n.step for n in self.learners), sum(n.total for n in self.learners))
        for learner in self.learners:
            if not learner.total:
                yield from self._end(learner)
        while (active := self._running()) and not any_process(self.processes, cancelled()):
            self.advance(active)
            for learner in active:
                if self._is_due(learner):
                    self._save(learner)
                more: dict[str, Any] = {}
                if self.processes.is_main_process:
                    with clock.paused():
                        more = self.look(learner)
                left = clock.seconds_left(sum(n.step for n in self.learners))
                with clock.paused():
                    yield self.report(learner, loss=learner.loss, seconds_left=left, **more)
                if not learner.running:
                    yield from self._end(learner)
        for learner in self._running():  # cancelled
            if learner.config.checkpoint_every and learner.step:
                self._save(learner)
        if lost := [learner for learner in self.learners if learner.diverged]:
            raise Diverged(_message(lost))

    def report(self, learner: Learner, **more: Any) -> Report:
        """Where a learner is; `more` are further fields."""
        smoothed = learner.smoothed_loss
        values: dict[str, Any] = {
            "stage": "train",
            "step": learner.step,
            "total": learner.total,
            "smoothed_loss": smoothed if math.isfinite(smoothed) else None,
            "learning_rate": learner.learning_rate,
            "skipped": learner.skipped,
        }
        return cast(Report, self.reports(**(values | self.details(learner) | more)))

    def _running(self) -> list[Learner]:
        return [learner for learner in self.learners if learner.running]

    def _is_due(self, learner: Learner) -> bool:
        """Whether its state is to be kept: now and then, and of one that is done before others."""
        every = learner.config.checkpoint_every
        if not every or not self._running():
            return False
        return not learner.running or learner.step % every == 0

    def _save(self, learner: Learner) -> None:
        """By all processes: each has something of its own. The first one writes."""
        own = gathered(self.processes, self.own())
        if self.processes.is_main_process:
            save_state(learner, own)

    def _end(self, learner: Learner) -> Iterator[Report]:
        """Write the file of one that is done, or what was last good of one that diverged."""
        more: dict[str, Any] = {}
        if self.processes.is_main_process:
            if not learner.diverged or learner.step > learner.skipped:
                more = self.write(learner)
            if not self._running():
                for one in self.learners:
                    one.config.checkpoint.unlink(missing_ok=True)
        self.processes.wait_for_everyone()
        if not learner.diverged:
            yield self.report(learner, stage="saved", path=learner.config.output, **more)


def _message(lost: Sequence[Learner]) -> str:
    first = lost[0]
    names = ", ".join(learner.name for learner in lost if learner.name)
    longer = " or a longer warmup" if hasattr(first.config, "warmup") else ""
    kept = " What was last good is kept." if first.step > first.skipped else ""
    count = first.bad_in_a_row
    return (
        f"Training{' of ' * bool(names)}{names} diverged: {count} step{'s' * (count > 1)} in a row"
        f" up to step {first.step} had no finite loss, at a learning rate of"
        f" {first.learning_rate:.2g}.{kept} Train again with a lower learning rate{longer}."
    )
