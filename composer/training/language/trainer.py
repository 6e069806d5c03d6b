"""The optimisation of one or several adapters on one base: one call, one step of each.

Rows of all adapters go through the frozen base together (m-LoRA, arXiv 2312.02515); each has its
own loss, its own routers on its own rows and its own optimizer, so it learns what it would alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from composer.language.batches import Batch, answer_loss, joined
from composer.language.load import LanguageModel
from composer.mixlora import Masks
from composer.precision import autocast
from composer.training.attention import attention_for_backward
from composer.training.core import Learner, Trainer
from composer.training.draws import generator_for
from composer.training.language.dataset import Dataset
from composer.training.language.handle import Adapters, save_trained, show_batch
from composer.training.language.settings import LanguageProgress, LanguageTraining

Item = TypeVar("Item")


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


class LanguageTrainer(Trainer[LanguageProgress]):
    """Trains adapters side by side, each with a learner of its name.

    at_once: how many batches at most share a forward pass; None for all.
    facts: of each adapter, what a state to resume from must share.
    """

    reports: ClassVar = LanguageProgress

    def __init__(
        self,
        language: LanguageModel,
        adapters: Adapters,
        configs: Sequence[LanguageTraining],
        datasets: Sequence[Dataset],
        facts: Sequence[Mapping[str, object]],
        processes: Any,
        at_once: int | None,
    ) -> None:
        learners = [
            _learner(adapters, config, dataset, known, processes)
            for config, dataset, known in zip(configs, datasets, facts, strict=True)
        ]
        super().__init__(learners, processes, device=language.device)
        self.language, self.adapters, self._at_once = language, adapters, at_once
        self.configs = {config.name: config for config in configs}
        self.datasets = dict(zip(self.configs, datasets, strict=True))
        self._loads: dict[str, tuple[float, ...]] = {}

    def advance(self, active: Sequence[Learner]) -> None:
        """One step of each."""
        device = self.device
        sums = {
            learner.name: _Sums(torch.zeros((), device=device), torch.zeros((), device=device))
            for learner in active
        }
        for learner in active:
            learner.begin()
        for part in range(max(learner.config.accumulation for learner in active)):
            jobs = [self._job(one, part) for one in active if part < one.config.accumulation]
            for chunk in least_padding(jobs, lambda job: job.length, self._at_once or len(jobs)):
                self._learn(chunk, sums)
        for learner in active:
            self._finish(learner, sums[learner.name])

    def look(self, learner: Learner) -> dict[str, Any]:
        """What the routers did, and a measurement where one is due."""
        every = self.configs[learner.name].eval_every
        due = every and learner.step % every == 0 and learner.running
        return {
            "router_loss": None if learner.loss is None else learner.figures["router"],
            "load": self._loads[learner.name],
            "eval_loss": self.evaluate(learner) if due else None,
        }

    def details(self, learner: Learner) -> dict[str, Any]:
        """Which adapter it is, and how many of its requests were cut."""
        return {"name": learner.name, "cut": self.datasets[learner.name].cut}

    def write(self, learner: Learner) -> dict[str, Any]:
        """The folder of an adapter, or the file of gates; with a last measurement."""
        measured = self.evaluate(learner)
        config = self.configs[learner.name]
        metadata = {
            "composer.training": json.dumps(_settings(config), ensure_ascii=False),
            "composer.steps": str(learner.step),
            "composer.skipped_steps": str(learner.skipped),
            "composer.smoothed_loss": f"{learner.smoothed_loss:.6g}",
        }
        if measured is not None:
            metadata["composer.eval_loss"] = f"{measured:.6g}"
        save_trained(self.adapters, learner.name, config.output, metadata)
        return {"eval_loss": measured}

    @torch.no_grad()
    def evaluate(self, learner: Learner) -> float | None:
        """The mean cross-entropy of a token of the data kept for it; None if there is none."""
        batches = self.datasets[learner.name].eval_batches()
        if not batches:
            return None
        model = self.language.model
        training = model.training
        model.eval()
        try:
            self.adapters.assign(learner.name)
            total, tokens = 0.0, 0
            for batch in batches:
                show_batch(self.adapters, batch)
                with self._precision():
                    logits: Tensor = cast(Any, model)(**batch.inputs(self.device)).logits
                total += float(answer_loss(logits, batch.labels.to(self.device)))
                tokens += batch.learnt
        finally:
            model.train(training)
        return total / tokens

    def _job(self, learner: Learner, part: int) -> Job:
        first = (learner.step * learner.config.accumulation + part) * self.processes.num_processes
        number = first + self.processes.process_index
        return Job(learner, number, self.datasets[learner.name].batch(number))

    def _learn(self, chunk: Sequence[Job], sums: dict[str, _Sums]) -> None:
        """One pass forth and back; leaves the gradients of the chunk's batches."""
        model, device = self.language.model, self.device
        whole, spans = joined([job.batch for job in chunk], self.language.pad)
        names = [job.learner.name for job in chunk for _ in job.batch.ids]
        self.adapters.assign(names)
        show_batch(self.adapters, whole)
        labels = whole.labels.to(device)
        tokens = int(whole.ids.shape[1])
        with (
            self._random(chunk[0]),
            attention_for_backward(device.type, tokens),
            self._precision(),
        ):
            # recorded in this pass alone: gradient checkpointing runs layers again in the next
            with self.adapters.record_routing(_on(device, whole.masks)) as tape:
                logits: Tensor = cast(Any, model)(**whole.inputs(device)).logits
            total = torch.zeros((), device=device)
            for job, rows in zip(chunk, spans, strict=True):
                learner = job.learner
                answers = answer_loss(logits[rows], labels[rows]) / self._tokens(learner)
                router = self.adapters.router_loss(tape, learner.name).to(device)
                router = router / learner.config.accumulation
                total = total + answers + router
                sums_of = sums[learner.name]
                sums_of.loss += answers.detach()
                sums_of.router += router.detach()
                sums_of.loads += self.adapters.loads(tape, learner.name).values()
            if total.requires_grad:
                torch.autograd.backward(total)

    def _tokens(self, learner: Learner) -> float:
        """The answers' tokens of the whole step, for each process: so that every token counts
        alike, in whatever batch and process it is. Known without asking the other processes."""
        count = learner.config.accumulation * self.processes.num_processes
        first = learner.step * count
        dataset = self.datasets[learner.name]
        learnt = sum(dataset.learnt(number) for number in range(first, first + count))
        return learnt / self.processes.num_processes

    def _finish(self, learner: Learner, sums: _Sums) -> None:
        loss, router = float(sums.loss), float(sums.router)
        loss = loss if math.isfinite(router) else math.nan
        learner.finish(self.processes, loss, {"router": router})
        mean: Any = torch.stack(sums.loads).mean(dim=0) if sums.loads else torch.zeros(0)
        self._loads[learner.name] = tuple(mean.tolist())

    def _precision(self) -> torch.autocast:
        shared = next(iter(self.configs.values())).precision
        return autocast(shared, self.device.type)

    @contextmanager
    def _random(self, job: Job) -> Generator[None, None, None]:
        """Dropout and jitter from the seed and the batch's number alone; no global random state is
        changed."""
        devices = [self.device] if self.device.type == "cuda" else []
        seed = generator_for(
            self.datasets[job.learner.name].seed, "dropout", job.number
        ).initial_seed()
        with cast(Any, torch.random).fork_rng(devices=devices):
            cast(Any, torch).manual_seed(seed)
            yield


def _learner(
    adapters: Adapters,
    config: LanguageTraining,
    dataset: Dataset,
    facts: Mapping[str, object],
    processes: Any,
) -> Learner:
    rows = config.batch_size * config.accumulation * processes.num_processes
    groups = adapters.parameter_groups(
        config.name,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        lora_plus=config.lora_plus,
    )
    return Learner(
        name=config.name,
        config=config,
        parameters=dict(adapters.named_parameters(config.name)),
        optimizer=torch.optim.AdamW(groups, fused=True),
        total=config.steps or dataset.steps(config.epochs, rows),
        facts=facts,
        warmup=config.warmup,
        schedule=config.schedule,
        clip_norm=config.clip_norm,
    )


def _settings(config: LanguageTraining) -> dict[str, Any]:
    """The config as JSON without where things lie on this machine."""
    names = {
        key: path.name if (path := getattr(config, key)) is not None else None
        for key in ("output", "data", "eval_data")
    }
    return config.to_json() | names


def least_padding(
    items: Sequence[Item], length: Callable[[Item], int], at_once: int
) -> list[list[Item]]:
    """The items in groups of at most `at_once`, those of like length together.

    Rows of a group are padded to its longest. As few groups as there can be; of all ways to part
    the items, ordered by length, into so many groups, the one with the least padding.
    """
    ordered = sorted(items, key=length)
    count, groups = len(ordered), -(-len(ordered) // at_once)
    lengths = [length(item) for item in ordered]
    # best[g][n]: the least cost of the first n items in g groups, and where the last one begins
    infinite = float("inf")
    best = [[(infinite, 0)] * (count + 1) for _ in range(groups + 1)]
    best[0][0] = (0.0, 0)
    for group in range(1, groups + 1):
        for end in range(1, count + 1):
            best[group][end] = min(
                (best[group - 1][begin][0] + (end - begin) * lengths[end - 1], begin)
                for begin in range(max(end - at_once, 0), end)
            )
    parts: list[list[Item]] = []
    end = count
    for group in range(groups, 0, -1):
        begin = best[group][end][1]
        parts.append(ordered[begin:end])
        end = begin
    return parts[::-1]
