"""Gates of the text encoder learn, through the words that the U-Net reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gate_training import (
    along_the_gradient,
    assert_every_gate_learns,
    experts_for,
    finished,
    put_gates_in,
    training,
)

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.mixture import Mixture, attach
from composer.training.gates import GateTraining
from composer.training.gates.distill import Distillation
from composer.training.gates.judged import Judged
from composer.training.gates.memory import remember

Prepared = Callable[[Model, Mixture, GateTraining], Callable[[], torch.Tensor]]


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.mark.parametrize("objective", ["judged", "distill"])
def test_a_short_training_changes_them(model: Model, tmp_path: Path, objective: str) -> None:
    """Not for being held near the sum, which needs no picture."""
    config = training(tmp_path, objective=objective, text_encoder=True, near=0.0, steps=2)
    learnt = assert_every_gate_learns(model, experts_for(model, tmp_path), config)
    of_words = {u: names for u, names in learnt.items() if u.startswith("text_encoder.")}
    assert of_words and all(names == {"e", "b"} for names in of_words.values())
    assert len(of_words) < len(learnt)  # those of the U-Net learn beside them


def judged(model: Model, mixture: Mixture, config: GateTraining) -> Callable[[], torch.Tensor]:
    """The loss of the second batch."""
    objective = finished(Judged.prepare(model, mixture, config))
    put_gates_in(model, mixture, config)
    objective.batch(0)
    kept = objective.state()

    def second() -> torch.Tensor:
        objective.load_state(kept)
        return objective.batch(1).loss

    return second


def distilled(model: Model, mixture: Mixture, config: GateTraining) -> Callable[[], torch.Tensor]:
    """The loss of the first batch."""
    memory = finished(remember(model, mixture, config, None))
    put_gates_in(model, mixture, config)
    objective = Distillation(model, mixture, memory, config)
    return lambda: objective.batch(0).loss


@pytest.mark.parametrize(
    ("prepared", "size"), [(judged, 1e-4), (distilled, 1e-3)], ids=["judged", "distill"]
)
def test_a_step_along_their_gradient_lowers_the_loss_by_as_much(
    model: Model, tmp_path: Path, prepared: Prepared, size: float
) -> None:
    """Through the text encoder too, whose other weights want no gradient."""
    config = training(tmp_path, text_encoder=True, batch_size=3, near=0.0)
    experts = experts_for(model, tmp_path)
    frozen = [*model.unet.parameters(), *model.text_encoder.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as mixture:
        loss = prepared(model, mixture, config)
        of_words = [g for unit, g in mixture.gates.items() if unit.startswith("text_encoder.")]
        parameters = [parameter for gate in of_words for parameter in gate.parameters()]
        change, expected = along_the_gradient(loss, parameters, size)
    for parameter in frozen:
        parameter.requires_grad_(True)
    assert expected < 0
    assert change == pytest.approx(expected, rel=0.1)
