"""The optimisation of one or several adapters on one base: one call, one step of each.

Rows of all adapters go through the frozen base together (m-LoRA, arXiv 2312.02515); each has its
own loss, its own routers on its own rows and its own optimizer, so it learns what it would alone.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from composer.language.batches import Batch, answer_loss, joined
from composer.language.load import LanguageModel
from composer.mixlora import Masks
from composer.training.attention import attention_for_backward
from composer.training.draws import generator_for
from composer.training.language.dispatch import least_padding
from composer.training.language.handle import Adapters, show_batch
from composer.training.language.learner import Learner, Outcome


@dataclass(frozen=True)
class Job:
    """One batch of one adapter; `number` counts its batches over all processes."""

    learner: Learner
    number: int
    batch: Batch

    @property
    def length(self) -> int:
        return int(self.batch.ids.shape[1])


@dataclass
class _Sums:
    loss: Tensor
    router: Tensor
    loads: list[Tensor] = field(default_factory=list[Tensor])


def _on(device: torch.device, masks: Masks) -> Masks:
    if isinstance(masks, Tensor):
        return masks.to(device)
    return {part: mask.to(device) for part, mask in masks.items()}


@dataclass
class LanguageTrainer:
    """Trains all learners side by side.

    `processes` is accelerate's PartialState: each process takes its own batches, and the gradients
    are averaged. `at_once` batches at most share a forward pass; None for all.
    """

    language: LanguageModel
    adapters: Adapters
    learners: list[Learner]
    processes: Any
    at_once: int | None = None

    def advance(self) -> dict[str, Outcome]:
        """One step of every learner that is not done; by name what it gave."""
        active = [learner for learner in self.learners if learner.running]
        device = self.language.device
        sums = {
            learner.name: _Sums(torch.zeros((), device=device), torch.zeros((), device=device))
            for learner in active
        }
        for learner in active:
            learner.begin()
        for part in range(max((learner.config.accumulation for learner in active), default=0)):
            jobs = [self._job(learner, part) for learner in active if self._has(learner, part)]
            for chunk in least_padding(jobs, lambda job: job.length, self.at_once or len(jobs)):
                self._learn(chunk, sums)
        return {learner.name: self._finish(learner, sums[learner.name]) for learner in active}

    @torch.no_grad()
    def evaluate(self, learner: Learner) -> float | None:
        """The mean cross-entropy of a token of the data kept for it; None if there is none."""
        batches = learner.lesson.eval_batches()
        if not batches:
            return None
        model, device = self.language.model, self.language.device
        training = model.training
        model.eval()
        try:
            self.adapters.assign(learner.name)
            total, tokens = 0.0, 0
            for batch in batches:
                show_batch(self.adapters, batch)
                with self._precision(learner):
                    logits: Tensor = cast(Any, model)(**batch.inputs(device)).logits
                total += float(answer_loss(logits, batch.labels.to(device)))
                tokens += batch.learnt
        finally:
            model.train(training)
        return total / tokens

    def _has(self, learner: Learner, part: int) -> bool:
        return part < learner.config.accumulation

    def _job(self, learner: Learner, part: int) -> Job:
        first = (learner.step * learner.config.accumulation + part) * self.processes.num_processes
        number = first + self.processes.process_index
        return Job(learner, number, learner.lesson.batch(number))

    def _learn(self, chunk: Sequence[Job], sums: dict[str, _Sums]) -> None:
        """One pass forth and back; leaves the gradients of the chunk's batches."""
        model, device = self.language.model, self.language.device
        whole, spans = joined([job.batch for job in chunk], self.language.pad)
        names = [job.learner.name for job in chunk for _ in job.batch.ids]
        self.adapters.assign(names)
        show_batch(self.adapters, whole)
        labels = whole.labels.to(device)
        tokens = int(whole.ids.shape[1])
        with (
            self._random(chunk[0]),
            attention_for_backward(device.type, tokens),
            self._precision(chunk[0].learner),
        ):
            # heard in this pass alone: gradient checkpointing runs layers again in the next
            with self.adapters.listen(_on(device, whole.masks)) as tape:
                logits: Tensor = cast(Any, model)(**whole.inputs(device)).logits
            total = torch.zeros((), device=device)
            for job, rows in zip(chunk, spans, strict=True):
                learner = job.learner
                answers = answer_loss(logits[rows], labels[rows]) / self._tokens(learner)
                router = self.adapters.router_loss(tape, learner.name).to(device)
                router = router / learner.config.accumulation
                total = total + answers + router
                told = sums[learner.name]
                told.loss += answers.detach()
                told.router += router.detach()
                told.loads += self.adapters.loads(tape, learner.name).values()
            if total.requires_grad:
                torch.autograd.backward(total)

    def _tokens(self, learner: Learner) -> float:
        """The answers' tokens of the whole step, for each process: so that every token counts
        alike, in whatever batch and process it is. Known without asking the other processes."""
        count = learner.config.accumulation * self.processes.num_processes
        first = learner.step * count
        learnt = sum(learner.lesson.learnt(number) for number in range(first, first + count))
        return learnt / self.processes.num_processes

    def _finish(self, learner: Learner, told: _Sums) -> Outcome:
        for parameter in learner.parameters.values():
            if parameter.grad is None:  # an expert that no token was sent to
                parameter.grad = torch.zeros_like(parameter)
        both = torch.stack([told.loss, told.router]).float()
        if self.processes.num_processes > 1:
            both = self._averaged(learner, both)
        loss, router = float(both[0]), float(both[1])
        stepped = learner.finish(loss if math.isfinite(router) else math.nan)
        load: list[float] = []
        if told.loads:
            load = cast(Any, torch.stack(told.loads).mean(dim=0)).tolist()
        return Outcome(loss=loss if stepped else None, router_loss=router, load=tuple(load))

    def _averaged(self, learner: Learner, losses: Tensor) -> Tensor:
        """The losses and gradients as means over the processes, in one exchange."""
        from accelerate import utils

        gradients = [cast(Tensor, p.grad) for p in learner.parameters.values()]
        flat = torch.cat([losses, *(g.float().flatten() for g in gradients)])
        mean: Tensor = cast(Any, utils).reduce(flat, reduction="mean")
        parts = torch.split(mean[2:], [gradient.numel() for gradient in gradients])
        for parameter, part in zip(learner.parameters.values(), parts, strict=True):
            parameter.grad = part.reshape(parameter.shape).to(parameter.dtype).clone()
        return mean[:2]

    def _precision(self, learner: Learner) -> torch.autocast:
        wanted = learner.config.precision == "bfloat16"
        return torch.autocast(self.language.device.type, torch.bfloat16, enabled=wanted)

    @contextmanager
    def _random(self, job: Job) -> Generator[None, None, None]:
        """Dropout and jitter from the seed and the batch's number alone; no global random state is
        changed."""
        device = self.language.device
        devices = [device] if device.type == "cuda" else []
        seed = generator_for(job.learner.config.seed, "dropout", job.number).initial_seed()
        with cast(Any, torch.random).fork_rng(devices=devices):
            cast(Any, torch).manual_seed(seed)
            yield
