"""A training's state in one file: written whole or not at all, and without pickle.

A safetensors file with, of each parameter, `parameter.NAME` and `last_good.NAME`; of the optimizer
`optimizer.INDEX.KEY`; of each process what it keeps of its own, `own.RANK.NAME`; and the counters,
settings and facts as one JSON object in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.files import write_atomically
from composer.outside import number, parse_object, whole

if TYPE_CHECKING:
    from composer.training.core import Learner
    from composer.training.settings import Training

KEY = "composer_training_state"
VERSION = 5
# What may differ between a training and its resumption without changing a single number.
FREE = frozenset(
    {"output", "title", "description", "role", "naming", "file_type", "checkpoint_every", "resume"}
    | {"preview_every", "preview_prompt", "save_preview", "eval_every"}
    | {"pictures", "prior_pictures", "sets", "data", "eval_data"}  # what is in them is compared
)
_COUNTERS = ("step", "skipped", "bad_in_a_row")


def save_state(learner: Learner, own: Sequence[Mapping[str, Tensor]]) -> None:
    """Write the state to the training's place for it; `own`: of each process.

    Raises:
        ComposerError: it cannot be written; what stood there before still stands.
    """
    from safetensors.torch import save

    tensors = {f"parameter.{name}": p.detach() for name, p in learner.parameters.items()}
    tensors |= {f"last_good.{name}": tensor for name, tensor in learner.last_good.items()}
    for index, values in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    for rank, kept in enumerate(own):
        tensors |= {f"own.{rank}.{name}": tensor for name, tensor in kept.items()}
    state = {
        "version": VERSION,
        **_identity(learner.config, learner.facts, len(own)),
        **{name: getattr(learner, name) for name in _COUNTERS},
        "smoothed": learner.smoothed,
    }
    plain = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(learner.config.checkpoint, save(plain, {KEY: json.dumps(state)}))


def check_state(config: Training, facts: Mapping[str, object], processes: Any) -> None:
    """Before any work: whether the training can go on from the state it is to go on from, if there
    is one.

    Raises:
        ComposerError: the state is broken or belongs to another training.
    """
    if config.resume and config.checkpoint.is_file():
        _read(config, _identity(config, facts, processes.num_processes))


def load_state(learner: Learner, processes: Any) -> dict[str, Tensor]:
    """Put the learner where it was; what this process kept of its own.

    Raises:
        ComposerError: the state is broken or belongs to another training; nothing is changed.
    """
    path = learner.config.checkpoint
    identity = _identity(learner.config, learner.facts, processes.num_processes)
    state, tensors = _read(learner.config, identity)
    pairs = [
        (mine, tensors.get(f"{kind}.{name}"))
        for kind, known in (("parameter", learner.parameters), ("last_good", learner.last_good))
        for name, mine in known.items()
    ]
    kept: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            kept.setdefault(int(index), {})[key] = tensor
    if any(theirs is None or theirs.shape != mine.shape for mine, theirs in pairs):
        raise _broken(path, "it lacks some of what is trained")
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(cast(Tensor, theirs))
    learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": kept})
    for name in _COUNTERS:
        setattr(learner, name, state[name])
    learner.smoothed = state["smoothed"]
    mark = f"own.{processes.process_index}."
    return {name.removeprefix(mark): t for name, t in tensors.items() if name.startswith(mark)}


def _identity(config: Training, facts: Mapping[str, object], processes: int) -> dict[str, object]:
    """What makes a training this one and no other."""
    return {
        "kind": type(config).__name__,
        "config": config.to_json(),
        "facts": dict(facts),
        "processes": processes,
    }


def _read(
    config: Training, identity: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The counters and the tensors of this training's state."""
    from safetensors import SafetensorError, safe_open

    path = config.checkpoint
    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            metadata: dict[str, str] = file.metadata() or {}
            if KEY not in metadata and any("training_state" in name for name in metadata):
                raise _old(path)
            state = parse_object(metadata[KEY])
            if state["version"] != VERSION:
                raise _old(path)
            _check_same(path, state, identity, config)
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name in _COUNTERS:
            whole(state[name])
        state["smoothed"] = {name: number(value) for name, value in state["smoothed"].items()}
    except ComposerError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise _broken(path, str(error)) from error
    return state, tensors


def _check_same(
    path: Path, state: Mapping[str, Any], now: Mapping[str, Any], config: Training
) -> None:
    remedy = "train with the same again, or start without resume."
    if state["kind"] != now["kind"]:
        raise ComposerError(f"{path} is of another kind of training: start without resume.")
    # as the settings are read today, with those that are new as they were without them
    then = cast(Any, type(config)).from_json(state["config"]).to_json()
    for key, value in now["config"].items():
        if key not in FREE and json.dumps(then[key]) != json.dumps(value):
            raise ComposerError(
                f"{path} was trained with {key} {then[key]!r}, not {value!r}: {remedy}"
            )
    for other, value in now["facts"].items():
        if json.dumps(state["facts"][other]) != json.dumps(value):
            raise ComposerError(f"{path} was trained on {other}: {remedy}")
    if state["processes"] != now["processes"]:
        raise ComposerError(
            f"{path} was trained by {state['processes']} processes, not"
            f" {now['processes']}: {remedy}"
        )


def _broken(path: Path, reason: str) -> ComposerError:
    return ComposerError(
        f"{path} is no training state of Composer ({reason}): delete it, or start without resume."
    )


def _old(path: Path) -> ComposerError:
    return ComposerError(f"{path} is from another version of Composer: start without resume.")
