"""Training language adapters, from records to the written folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from composer.errors import ComposerError
from composer.files import check_writable
from composer.language.batches import check_packing
from composer.language.load import LanguageModel
from composer.language.records import Record
from composer.training.language.dataset import Dataset, prepare_dataset
from composer.training.language.handle import attach_adapters
from composer.training.language.settings import LanguageProgress, LanguageTraining
from composer.training.language.trainer import LanguageTrainer
from composer.training.processes import join_processes
from composer.training.state import check_state

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
    datasets = [
        prepare_dataset(language, config, records=some, eval_records=measured)
        for config, some, measured in zip(
            configs, _each(records, configs), _each(eval_records, configs), strict=True
        )
    ]
    processes = join_processes(language.device.type)
    model = _describe(language)
    facts = [{"other data": dataset.fingerprint, "another model": model} for dataset in datasets]
    for config, known in zip(configs, facts, strict=True):
        check_writable(config.output)
        check_state(config, known, processes)
    if any(config.packing for config in configs):
        check_packing(language.model)
    return _train(language, configs, datasets, facts, at_once, processes, cancelled)


def _each(given: Sequence[Records], configs: Sequence[LanguageTraining]) -> Sequence[Records]:
    return given or [None] * len(configs)


def _train(
    language: LanguageModel,
    configs: Sequence[LanguageTraining],
    datasets: Sequence[Dataset],
    facts: Sequence[Mapping[str, object]],
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
        trainer = LanguageTrainer(language, adapters, configs, datasets, facts, processes, at_once)
        for learner in trainer.learners:
            yield trainer.report(learner, stage="prepare")
        yield from trainer.run(cancelled)
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


def _describe(language: LanguageModel) -> list[Any]:
    """What a base is known by: its architecture, and a few numbers of its weights."""
    known: list[Any] = [type(language.model).__name__]
    for name, parameter in language.model.named_parameters():
        if name.endswith(("embed_tokens.weight", "wte.weight", "norm.weight", "ln_f.weight")):
            known.append([name, list(parameter.shape), float(parameter.detach().double().sum())])
    return known
