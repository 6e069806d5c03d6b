"""A gate training that is stopped, or never begun, leaves the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gate_training import assert_untouched, run, state_of, training
from tiny_loras import experts_for

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.training.gates.settings import GateProgress
from composer.training.gates.train import train_gates


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def test_one_that_is_never_begun_leaves_nothing(model: Model, tmp_path: Path) -> None:
    before = state_of(model)
    reports: Any = train_gates(model, experts_for(model, tmp_path), training(tmp_path))
    assert_untouched(model, before)
    reports.close()
    assert_untouched(model, before)


def test_after_stop_no_further_work_is_begun(model: Model, tmp_path: Path) -> None:
    """Not before the first step either; and what was not begun is not kept."""
    before, seen = state_of(model), list[GateProgress]()
    config = training(tmp_path)
    experts = experts_for(model, tmp_path)
    for report in train_gates(model, experts, config, cancelled=lambda: bool(seen)):
        seen.append(report)
    assert [report.stage for report in seen] == ["alone"]
    assert not config.output.exists() and not config.checkpoint.exists()
    assert_untouched(model, before)


def test_it_goes_on_with_no_other_experts(model: Model, tmp_path: Path) -> None:
    experts = experts_for(model, tmp_path)
    run(model, experts, training(tmp_path), stop_after=3)
    with pytest.raises(ComposerError, match="other LoRAs, or in another order"):  # before any work
        train_gates(model, experts[::-1], training(tmp_path, resume=True))
