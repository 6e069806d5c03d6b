"""A step whose loss is not finite is left out, and the training goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_training import run, training
from tiny_clip import write_clip
from tiny_loras import experts_for

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.fusions.gate_file import read_gates
from composer.training.gates.losses import Batch
from composer.training.gates.paper import ClipGuidance


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def nan_at(number: int, batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The batch, in which the model says one number that is none, once."""

    def broken(self: Any, now: int) -> Batch:
        unet, once = self.model.unet, {"left": now == number}

        def spoil(module: Any, given: Any, said: Any) -> Any:
            if once["left"] and torch.is_grad_enabled():
                once["left"] = False
                said = (said[0].clone(), *said[1:])
                said[0][0] = float("nan")
                return said
            return None

        handle = unet.register_forward_hook(spoil)
        try:
            return batch(self, now)
        finally:
            handle.remove()

    return broken


def test_a_sampling_goes_on_after_a_bad_step(
    model: Model, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipGuidance, "batch", nan_at(2, ClipGuidance.batch, monkeypatch))
    clip = str(write_clip(tmp_path / "clip", tiny_sd))
    config = training(tmp_path, steps=8, paper=True, clip=clip)
    made = run(model, experts_for(model, tmp_path), config)
    assert [step for step, report in made.items() if report.loss is None] == [3]
    assert made[8].skipped == 1
    file = read_gates(config.output)
    assert file.training["skipped"] == 1
    assert all(bool(t.isfinite().all()) for named in file.tensors.values() for t in named.values())
