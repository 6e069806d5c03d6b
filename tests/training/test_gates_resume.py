"""A stopped gate training goes on as if it had never stopped, or says why it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_training import experts_for, run, training
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.training.gates.checkpoint import KEY
from composer.training.gates.train import train_gates


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def test_resumed_is_the_same_as_uninterrupted(model: Model, tmp_path: Path) -> None:
    experts = experts_for(model, tmp_path)
    whole = run(model, experts, training(tmp_path / "whole"))
    stopped = training(tmp_path / "stopped")
    first = run(model, experts, stopped, stop_after=3)
    assert list(first) == [1, 2, 3] and stopped.checkpoint.is_file()
    assert not stopped.output.exists()
    rest = run(model, experts, training(tmp_path / "stopped", resume=True))
    assert list(rest) == [4, 5, 6] and not stopped.checkpoint.exists()
    losses = {step: report.loss for step, report in (first | rest).items()}
    assert losses == {step: report.loss for step, report in whole.items()}
    tensors = load_file(tmp_path / "whole" / "gates.safetensors")
    for name, again in load_file(stopped.output).items():
        assert torch.equal(again, tensors[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 1}, "seed 0, not 1"), ({"batch_size": 5}, "batch_size 4, not 5")],
)
def test_another_training_is_refused(
    model: Model, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    experts = experts_for(model, tmp_path)
    run(model, experts, training(tmp_path), stop_after=3)
    with pytest.raises(ComposerError, match=message):  # before any work
        train_gates(model, experts, training(tmp_path, resume=True, **change))


def test_other_experts_are_refused(model: Model, tmp_path: Path) -> None:
    experts = experts_for(model, tmp_path)
    run(model, experts, training(tmp_path), stop_after=3)
    with pytest.raises(ComposerError, match="other LoRAs, or in another order"):
        train_gates(model, experts[::-1], training(tmp_path, resume=True))


def test_a_cut_state_is_refused(model: Model, tmp_path: Path) -> None:
    experts = experts_for(model, tmp_path)
    config = training(tmp_path, resume=True)
    config.checkpoint.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ComposerError, match="no state of a gate training"):
        train_gates(model, experts, config)


def test_a_state_of_before_is_refused_with_a_remedy(model: Model, tmp_path: Path) -> None:
    """One that was kept when there were settings that there are no more."""
    experts = experts_for(model, tmp_path)
    config = training(tmp_path)
    run(model, experts, config, stop_after=3)
    with safe_open(config.checkpoint, framework="pt") as file:
        state = json.loads(file.metadata()[KEY])
    state["version"] -= 1
    state["config"] |= {"objective": "distill", "keep": 1.0, "gate": {"reduce": "grid"}}
    save_file(load_file(config.checkpoint), config.checkpoint, {KEY: json.dumps(state)})
    with pytest.raises(ComposerError, match="another version of Composer: start without resume"):
        train_gates(model, experts, training(tmp_path, resume=True))
