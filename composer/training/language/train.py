"""Training language adapters, from records to the written folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from composer.clock import Clock
from composer.errors import ComposerError
from composer.files import check_writable
from composer.language.batches import check_packing
from composer.language.load import LanguageModel
from composer.language.records import Record
from composer.training.core import MOST_BAD_STEPS, Diverged
from composer.training.language.checkpoint import (
    check_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from composer.training.language.config import LanguageTraining
from composer.training.language.handle import Adapters, attach_adapters
from composer.training.language.learner import Learner
from composer.training.language.leavings import keep_state, report, write_learner
from composer.training.language.lesson import Lesson, prepare_lesson
from composer.training.language.progress import LanguageProgress
from composer.training.language.trainer import LanguageTrainer
from composer.training.processes import join_processes

Records = Sequence[Record] | None
COMPILER = "inductor"
SHARED = ("precision", "gradient_checkpointing", "compile")
"""Settings of the base, in which trainings on one base must agree."""


def train_adapter(
    language: LanguageModel,
    config: LanguageTraining,
    *,
    records: Records = None,
    eval_records: Records = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[LanguageProgress]:
    """Train one adapter on a causal language model and write it; see `train_adapters`."""
    return train_adapters(
        language, [config], records=[records], eval_records=[eval_records], cancelled=cancelled
    )


def train_adapters(
    language: LanguageModel,
    configs: Sequence[LanguageTraining],
    *,
    records: Sequence[Records] = (),
    eval_records: Sequence[Records] = (),
    at_once: int | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[LanguageProgress]:
    """Train adapters on one base at once, each to what it would be if trained alone, and write
    them.

    A step minimises the mean cross-entropy of the answers' tokens plus the routers' losses. Rows
    of `at_once` adapters (None: all) share each pass through the base, those of like length
    together. With dropout or jitter above 0 an adapter trained among others draws other noise than
    it would alone; all else is the same.

    The data comes from each config's files, or from `records` and `eval_records`, one entry for
    each config. Wrong settings and data raise ComposerError here, before the first report. Each
    adapter's last report has stage "saved" and its folder. When cancelled, the reports end without
    it, and the state to resume from is kept if `checkpoint_every` asks for one. However it ends,
    the base is as it was, bit for bit. An adapter that has three steps in a row without a finite
    loss is written as it last was good and the others go on; at the end Diverged is raised.
    """
    if not configs:
        raise ComposerError("There is nothing to train: give at least one training.")
    if at_once is not None and at_once < 1:
        raise ComposerError(f"at_once is {at_once}: give 1 or more.")
    for name in SHARED:
        if len({getattr(config, name) for config in configs}) > 1:
            raise ComposerError(f"Trainings on one base must agree in {name}: give all the same.")
    if next(language.model.parameters()).dtype == torch.float16:
        raise ComposerError(
            f"{language.name} is loaded in float16, in which small gradients vanish: load it in"
            " float32 or bfloat16."
        )
    configs = [
        config
        if config.adapter.base_model
        else replace(config, adapter=replace(config.adapter, base_model=language.name))
        for config in configs
    ]
    lessons = [
        prepare_lesson(language, config, records=some, eval_records=measured)
        for config, some, measured in zip(
            configs, _each(records, configs), _each(eval_records, configs), strict=True
        )
    ]
    processes = join_processes(language.device.type)
    for config, lesson in zip(configs, lessons, strict=True):
        check_writable(config.output)
        check_checkpoint(language, config, lesson, processes)
    if any(config.packing for config in configs):
        check_packing(language.model)
    return _train(language, configs, lessons, at_once, processes, cancelled)


def _each(given: Sequence[Records], configs: Sequence[LanguageTraining]) -> Sequence[Records]:
    return given or [None] * len(configs)


def _train(
    language: LanguageModel,
    configs: Sequence[LanguageTraining],
    lessons: Sequence[Lesson],
    at_once: int | None,
    processes: Any,
    cancelled: Callable[[], bool],
) -> Iterator[LanguageProgress]:
    adapters = attach_adapters(language, configs)
    model: Any = language.model
    training, caching = model.training, _is_checkpointing(model)
    try:
        if configs[0].gradient_checkpointing:
            _checkpointing(model, True)
        if configs[0].compile:
            model.compile(backend=COMPILER)
        model.train()
        trainer = LanguageTrainer(
            language=language,
            adapters=adapters,
            learners=[
                _learner(adapters, config, lesson, processes)
                for config, lesson in zip(configs, lessons, strict=True)
            ],
            processes=processes,
            at_once=at_once,
        )
        for learner in trainer.learners:
            if learner.config.resume and learner.config.checkpoint.is_file():
                load_checkpoint(learner, language, processes)
            yield report(learner, stage="prepare")
        yield from _steps(trainer, cancelled)
    finally:
        if configs[0].compile:
            model._compiled_call_impl = None  # what `compile` set: the model is itself again
        adapters.detach()
        model.train(training)
        if configs[0].gradient_checkpointing and not caching:
            _checkpointing(model, False)


def _is_checkpointing(model: Any) -> bool:
    # transformers 5 calls it activation checkpointing in its later releases
    names = ("is_activation_checkpointing", "is_gradient_checkpointing")
    return bool(next((getattr(model, name) for name in names if hasattr(model, name)), False))


def _checkpointing(model: Any, on: bool) -> None:
    """Activations are computed again in the backward pass, in the non-reentrant form."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()


def _learner(
    adapters: Adapters, config: LanguageTraining, lesson: Lesson, processes: Any
) -> Learner:
    rows = config.batch_size * config.accumulation * processes.num_processes
    return Learner(
        config=config,
        lesson=lesson,
        parameters=dict(adapters.named_parameters(config.name)),
        groups=adapters.parameter_groups(
            config.name,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            lora_plus=config.lora_plus,
        ),
        total=config.steps or lesson.steps(config.epochs, rows),
    )


def _steps(trainer: LanguageTrainer, cancelled: Callable[[], bool]) -> Iterator[LanguageProgress]:
    learners, main = trainer.learners, trainer.processes.is_main_process
    clock = Clock(sum(n.step for n in learners), sum(n.total for n in learners))
    while any(learner.running for learner in learners) and not cancelled():
        outcomes = trainer.advance()
        left = clock.seconds_left(sum(learner.step for learner in learners))
        for learner in learners:
            if learner.name not in outcomes:
                continue
            told = outcomes[learner.name]
            measured = None
            every = learner.config.eval_every
            if main and every and learner.step % every == 0 and learner.running:
                with clock.paused():
                    measured = trainer.evaluate(learner)
            keep_state(trainer, learner)
            yield report(
                learner,
                loss=told.loss,
                router_loss=told.router_loss,
                load=told.load,
                eval_loss=measured,
                seconds_left=left,
            )
            if not learner.running and main and (learner.total > learner.skipped):
                yield from write_learner(trainer, learner)
    if main:
        for learner in learners:
            if learner.running and learner.config.checkpoint_every:  # cancelled
                save_checkpoint(learner, trainer.language, trainer.processes)
        if not any(learner.running for learner in learners):
            for learner in learners:
                learner.config.checkpoint.unlink(missing_ok=True)
    trainer.processes.wait_for_everyone()
    if lost := [learner for learner in learners if learner.diverged]:
        names = ", ".join(learner.name for learner in lost)
        raise Diverged(
            f"Training of {names} diverged: {MOST_BAD_STEPS} steps in a row up to step"
            f" {lost[0].step} had no finite loss, at a learning rate of"
            f" {lost[0].learning_rate:.2g}. What was last good is kept; train again with a lower"
            " learning rate or a longer warmup."
        )
