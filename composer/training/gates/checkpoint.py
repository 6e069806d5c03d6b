"""The state of a gate training in one file: written whole or not at all, and without pickle.

What the experts draw alone is not kept: it follows from the seed, and is made again in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.experts import Expert
from composer.files import write_atomically
from composer.training.gates.settings import GateTraining
from composer.training.gates.trainer import GateTrainer
from composer.training.processes import gathered

VERSION = 4
KEY = "composer_gate_training_state"
# What may differ between a training and its resumption without changing a single number.
FREE = frozenset({"output", "preview_every", "preview_prompt", "checkpoint_every", "resume"})


def save_checkpoint(path: Path, trainer: GateTrainer, experts: Sequence[Expert]) -> None:
    """Replaces the file only when the new one is whole on the disk; else raises ComposerError.

    To be called by all processes: each has pictures of its own under way. The main one writes.
    """
    from safetensors.torch import save

    assert trainer.objective is not None
    under_way = gathered(trainer.processes, trainer.objective.state())
    if not trainer.processes.is_main_process:
        return
    tensors = {f"gate.{name}": p.detach() for name, p in trainer.parameters.items()}
    tensors |= {f"last_good.{name}": tensor for name, tensor in trainer.last_good.items()}
    for rank, state in enumerate(under_way):
        tensors |= {f"objective.{rank}.{name}": value for name, value in state.items()}
    for index, values in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    facts = {
        "version": VERSION,
        "step": trainer.step,
        "skipped": trainer.skipped,
        "bad_in_a_row": trainer.bad_in_a_row,
        "smoothed": trainer.smoothed,
        "config": trainer.config.to_json(),
        "experts": [[expert.name, expert.tensor_hash] for expert in experts],
        "model": trainer.model.hash,
        "processes": trainer.processes.num_processes,
    }
    plain = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, {KEY: json.dumps(facts)}))


def check_checkpoint(
    model: Model, experts: Sequence[Expert], config: GateTraining, processes: Any
) -> None:
    """Before any work: raises ComposerError if the state to go on from, where there is one, is
    broken or belongs to another training."""
    if config.resume and config.checkpoint.is_file():
        state, _ = _read(config.checkpoint)
        _check_same(config.checkpoint, state, model, experts, config, processes)


def load_checkpoint(path: Path, trainer: GateTrainer, experts: Sequence[Expert]) -> None:
    """Raises ComposerError if the file is broken or belongs to another training."""
    state, tensors = _read(path)
    _check_same(path, state, trainer.model, experts, trainer.config, trainer.processes)
    with torch.no_grad():
        for name, parameter in trainer.parameters.items():
            parameter.copy_(tensors[f"gate.{name}"])
            trainer.last_good[name].copy_(tensors[f"last_good.{name}"])
    assert trainer.objective is not None
    mark = f"objective.{trainer.processes.process_index}."
    trainer.objective.load_state(
        {name.removeprefix(mark): t for name, t in tensors.items() if name.startswith(mark)}
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": moments})
    trainer.step, trainer.skipped = state["step"], state["skipped"]
    trainer.bad_in_a_row, trainer.smoothed = state["bad_in_a_row"], state["smoothed"]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            state: dict[str, Any] = json.loads(file.metadata()[KEY])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ComposerError(
            f"{path} is no state of a gate training: delete it, or start without resume."
        ) from error
    return state, tensors


def _check_same(
    path: Path,
    state: dict[str, Any],
    model: Model,
    experts: Sequence[Expert],
    config: GateTraining,
    processes: Any,
) -> None:
    remedy = "train with the same again, or start without resume."
    if state["version"] != VERSION:
        raise ComposerError(f"{path} is from another version of Composer: start without resume.")
    then = GateTraining.from_json(state["config"]).to_json()
    now = config.to_json()
    for key in now:
        if key not in FREE and json.dumps(then[key]) != json.dumps(now[key]):
            raise ComposerError(
                f"{path} was trained with {key} {then[key]!r}, not {now[key]!r}: {remedy}"
            )
    if state["experts"] != [[expert.name, expert.tensor_hash] for expert in experts]:
        raise ComposerError(f"{path} was trained on other LoRAs, or in another order: {remedy}")
    if state["model"] != model.hash:
        raise ComposerError(f"{path} was trained on another model: {remedy}")
    if state["processes"] != processes.num_processes:
        raise ComposerError(
            f"{path} was trained by {state['processes']} processes, not"
            f" {processes.num_processes}: {remedy}"
        )
