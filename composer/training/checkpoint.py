"""A training's state in one file: written whole or not at all, and without pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.files import write_atomically
from composer.training.pictures import TrainingPicture
from composer.training.trainer import Trainer

VERSION = 2
# What may differ between a training and its resumption without changing a single number.
FREE = frozenset(
    {"output", "pictures", "prior_pictures", "title", "description", "role", "preview_every"}
    | {"preview_prompt", "save_preview", "checkpoint_every", "resume", "naming", "file_type"}
    | {"sets"}  # their pictures are compared themselves
)


def save_checkpoint(path: Path, trainer: Trainer, pictures: Sequence[TrainingPicture]) -> None:
    """Replaces the file only when the new one is whole on the disk; else raises ComposerError."""
    from safetensors.torch import save

    optimizer = trainer.optimizer.state_dict()["state"]
    tensors = {f"factor.{name}": p.detach() for name, p in trainer.parameters.items()}
    tensors |= {f"last_good.{name}": tensor for name, tensor in trainer.last_good.items()}
    tensors |= {
        f"optimizer.{index}.{key}": value
        for index, values in optimizer.items()
        for key, value in values.items()
    }
    state = {
        "version": VERSION,
        "step": trainer.step,
        "skipped": trainer.skipped,
        "bad_in_a_row": trainer.bad_in_a_row,
        "smoothed_loss": trainer.smoothed_loss,
        "kind": type(trainer.config).__name__,
        "config": trainer.config.to_json(),
        "sets": list(trainer.lesson.draws.sets),
        "pictures": fingerprint(pictures),
        "processes": trainer.processes.num_processes,
    }
    data = save(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
        {"composer_training_state": json.dumps(state)},
    )
    write_atomically(path, data)


def load_checkpoint(path: Path, trainer: Trainer, pictures: Sequence[TrainingPicture]) -> None:
    """Raises ComposerError if the file is broken or belongs to another training."""
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            state: dict[str, Any] = json.loads(file.metadata()["composer_training_state"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ComposerError(
            f"{path} is no training state of Composer: delete it, or start without resume."
        ) from error
    _check_same(path, state, trainer, pictures)
    with torch.no_grad():
        for name, parameter in trainer.parameters.items():
            parameter.copy_(tensors[f"factor.{name}"])
            trainer.last_good[name].copy_(tensors[f"last_good.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": moments})
    trainer.step, trainer.skipped = state["step"], state["skipped"]
    trainer.bad_in_a_row = state["bad_in_a_row"]
    trainer.smoothed_loss = state["smoothed_loss"]


def fingerprint(pictures: Sequence[TrainingPicture]) -> str:
    """A hash of all pictures, captions and weights in their order."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr((picture.caption, picture.weight, picture.is_prior)).encode())
        digest.update(picture.image.tobytes())
    return digest.hexdigest()


def _check_same(
    path: Path, state: dict[str, Any], trainer: Trainer, pictures: Sequence[TrainingPicture]
) -> None:
    remedy = "train with the same again, or start without resume."
    if state["version"] != VERSION:
        raise ComposerError(f"{path} is from another version of Composer: start without resume.")
    if state["kind"] != type(trainer.config).__name__:
        raise ComposerError(f"{path} is of another kind of training: start without resume.")
    then = type(trainer.config).from_json(state["config"]).to_json()
    now = trainer.config.to_json()
    for key in now:
        if key not in FREE and then[key] != now[key]:
            raise ComposerError(
                f"{path} was trained with {key} {then[key]!r}, not {now[key]!r}: {remedy}"
            )
    sets = list(trainer.lesson.draws.sets)
    if state["sets"] != sets or state["pictures"] != fingerprint(pictures):
        raise ComposerError(f"{path} was trained on other pictures or captions: {remedy}")
    if state["processes"] != trainer.processes.num_processes:
        raise ComposerError(
            f"{path} was trained by {state['processes']} processes, not"
            f" {trainer.processes.num_processes}: {remedy}"
        )
