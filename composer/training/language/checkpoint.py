"""The state of one adapter's training in one file: written whole or not at all, without pickle.

Each adapter has a file of its own, also where several are trained together: what one learns does
not depend on the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.files import write_atomically
from composer.language.load import LanguageModel
from composer.training.language.config import LanguageTraining
from composer.training.language.learner import Learner
from composer.training.language.lesson import Lesson

VERSION = 1
KEY = "composer_language_training_state"
# What may differ between a training and its resumption without changing a single number.
FREE = frozenset({"output", "data", "eval_data", "eval_every", "checkpoint_every", "resume"})


def save_checkpoint(learner: Learner, language: LanguageModel, processes: Any) -> None:
    """Replaces the file only when the new one is whole on the disk; else raises ComposerError."""
    from safetensors.torch import save

    tensors = {f"factor.{name}": p.detach() for name, p in learner.parameters.items()}
    tensors |= {f"last_good.{name}": tensor for name, tensor in learner.last_good.items()}
    for index, values in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    state = {
        "version": VERSION,
        "step": learner.step,
        "total": learner.total,
        "skipped": learner.skipped,
        "bad_in_a_row": learner.bad_in_a_row,
        "smoothed_loss": learner.smoothed_loss,
        "config": learner.config.to_json(),
        "lesson": learner.lesson.fingerprint,
        "model": describe(language),
        "processes": processes.num_processes,
    }
    plain = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(learner.config.checkpoint, save(plain, {KEY: json.dumps(state)}))


def check_checkpoint(
    language: LanguageModel, config: LanguageTraining, lesson: Lesson, processes: Any
) -> None:
    """Before any work: raises ComposerError if the state to go on from, where there is one, is
    broken or belongs to another training."""
    if config.resume and config.checkpoint.is_file():
        state, _ = _read(config.checkpoint)
        _check_same(state, language, config, lesson, processes)


def load_checkpoint(learner: Learner, language: LanguageModel, processes: Any) -> None:
    """Raises ComposerError if the file is broken or belongs to another training."""
    state, tensors = _read(learner.config.checkpoint)
    _check_same(state, language, learner.config, learner.lesson, processes)
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            parameter.copy_(tensors[f"factor.{name}"])
            learner.last_good[name].copy_(tensors[f"last_good.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": moments})
    learner.step, learner.skipped = state["step"], state["skipped"]
    learner.bad_in_a_row, learner.smoothed_loss = state["bad_in_a_row"], state["smoothed_loss"]


def describe(language: LanguageModel) -> list[Any]:
    """What a base is known by: its architecture, and a few numbers of its weights."""
    said: list[Any] = [type(language.model).__name__]
    for name, parameter in language.model.named_parameters():
        if name.endswith(("embed_tokens.weight", "wte.weight", "norm.weight", "ln_f.weight")):
            # the same with stand-ins around it, as when this training's own adapters are on
            plain = name.replace(".base.", ".")
            said.append([plain, list(parameter.shape), float(parameter.detach().double().sum())])
    return said


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            state: dict[str, Any] = json.loads(file.metadata()[KEY])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ComposerError(
            f"{path} is no state of an adapter's training: delete it, or start without resume."
        ) from error
    return state, tensors


def _check_same(
    state: dict[str, Any],
    language: LanguageModel,
    config: LanguageTraining,
    lesson: Lesson,
    processes: Any,
) -> None:
    path = config.checkpoint
    remedy = "train with the same again, or start without resume."
    if state["version"] != VERSION:
        raise ComposerError(f"{path} is from another version of Composer: start without resume.")
    then, now = state["config"], json.loads(json.dumps(config.to_json()))
    for key in now:
        if key not in FREE and then.get(key) != now[key]:
            raise ComposerError(
                f"{path} was trained with {key} {then.get(key)!r}, not {now[key]!r}: {remedy}"
            )
    if state["lesson"] != lesson.fingerprint:
        raise ComposerError(f"{path} was trained on other data: {remedy}")
    if state["model"] != json.loads(json.dumps(describe(language))):
        raise ComposerError(f"{path} was trained on another model: {remedy}")
    if state["processes"] != processes.num_processes:
        raise ComposerError(
            f"{path} was trained by {state['processes']} processes, not"
            f" {processes.num_processes}: {remedy}"
        )
