"""The loop: budgets are kept, killed runs go on, averages are right, checkpoints are whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from toybox import loop, tensors
from toybox.loop import Stage, counts, load_average, run_stage
from toybox.optimizer import MuonAdamW
from toybox.tensors import load_tensors, save_tensors


class Killed(Exception):
    """What ends a run before its time."""


@dataclass
class Run:
    """A tiny model in training, and what its loss was told."""

    stage: Stage
    kill_at: int = 10**9
    parts: list[float] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    drawn: list[tuple[int, Tensor]] = field(default_factory=list)

    def go(self) -> nn.Module:
        torch.manual_seed(0)
        self.model = nn.Linear(8, 8)
        optimizer = MuonAdamW(self.model, muon_lr=0.1, adam_lr=0.01)

        def loss(part: float) -> tuple[Tensor, dict[str, float], int]:
            if len(self.parts) == self.kill_at:
                raise Killed
            self.parts.append(part)
            self.weights.append(self.model.weight.detach().clone())
            value = (self.model(torch.randn(4, 8)) - 1).pow(2).mean()
            return value, {"loss": float(value.detach())}, 4

        def sample(model: nn.Module, step: int) -> None:
            self.drawn.append((step, model.weight.detach().clone()))

        return run_stage(self.stage, self.model, optimizer, loss, sample=sample, warmup=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves on by one second each time it is read."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))


def stage(folder: Path, seconds: float, checkpoint: float = 1e9) -> Stage:
    return Stage(
        name="tiny", minutes=seconds / 60, folder=folder, checkpoint_minutes=checkpoint / 60
    )


def test_a_budget_of_a_second_takes_a_second(tmp_path: Path) -> None:
    begun = time.monotonic()
    run = Run(stage(tmp_path, 1.0))
    run.go()
    assert 1.0 <= time.monotonic() - begun < 10
    assert run.parts == sorted(run.parts)
    assert run.parts[-1] < 1


@pytest.mark.usefixtures("clock")
def test_the_part_of_the_budget_runs_from_nought_to_one(tmp_path: Path) -> None:
    run = Run(stage(tmp_path, 20))
    run.go()
    assert run.parts == pytest.approx([second / 20 for second in range(1, 20)])
    assert counts(run.stage.checkpoint) == (19, 76, pytest.approx(20))


@pytest.mark.usefixtures("clock")
def test_the_rate_ends_at_nought() -> None:
    rates = [loop._rate(part / 100) for part in range(101)]
    assert rates[:40] == [1.0] * 40
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0)


@pytest.mark.usefixtures("clock")
def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    first = Run(stage(tmp_path, 40, checkpoint=8), kill_at=20)
    with pytest.raises(Killed):
        first.go()
    steps, images, used = counts(first.stage.checkpoint)
    assert (steps, images, used) == (18, 72, 18)  # two checkpoints, more than 8 seconds apart
    second = Run(stage(tmp_path, 40, checkpoint=8))
    second.go()
    assert second.parts[0] == pytest.approx((used + 1) / 40)
    assert torch.equal(second.weights[0], first.weights[18])
    assert len(second.parts) == 40 - 18 - 1
    assert counts(first.stage.checkpoint) == (39, 156, pytest.approx(40))


@pytest.mark.usefixtures("clock")
def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    first, second = Run(stage(tmp_path, 10)), Run(stage(tmp_path, 10))
    done = first.go()
    again = second.go()
    assert second.parts == []
    assert torch.equal(again.weight, done.weight)
    assert counts(first.stage.checkpoint)[0] == len(first.parts)


@pytest.mark.usefixtures("clock")
def test_the_average_is_kept_beside_the_weights(tmp_path: Path) -> None:
    run = Run(stage(tmp_path, 30, checkpoint=10))
    result = run.go()
    last = load_tensors(run.stage.checkpoint, "model.")["weight"]
    average, expected = run.weights[0].clone(), []
    for step, weight in enumerate([*run.weights[1:], last], start=1):
        decay = min(0.999, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
        expected.append(average)
    assert torch.allclose(result.weight, average, atol=1e-6)
    # what is drawn is the average; training goes on with the weights themselves
    assert [step for step, _ in run.drawn] == [11, 22, 29]
    for step, weight in run.drawn:
        assert torch.allclose(weight, expected[step - 1], atol=1e-6)
    loaded = load_average(run.stage.checkpoint, nn.Linear(8, 8))
    assert torch.equal(loaded.weight, result.weight)


@pytest.mark.usefixtures("clock")
def test_buffers_are_averaged_and_counters_copied(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = MuonAdamW(model, muon_lr=0.01, adam_lr=0.01)

    def loss(_: float) -> tuple[Tensor, dict[str, float], int]:
        return model(torch.randn(4, 8)).pow(2).mean(), {}, 4

    run_stage(stage(tmp_path, 10), model, optimizer, loss)
    assert int(model[1].num_batches_tracked) == 9
    assert model[1].running_mean.any()


def broken_save(tensors: object, path: Path, metadata: object) -> None:
    path.write_bytes(b"half a file")
    raise Killed


def test_a_checkpoint_is_whole_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "stage.safetensors"
    save_tensors(path, {"model.a": torch.ones(2), "average.a": torch.zeros(2)}, {"counts": "1"})
    monkeypatch.setattr(tensors, "_FORMAT", SimpleNamespace(save_file=broken_save))
    with pytest.raises(Killed):
        save_tensors(path, {"model.a": torch.zeros(2)})
    monkeypatch.undo()
    assert torch.equal(load_tensors(path, "model.")["a"], torch.ones(2))
    assert set(load_tensors(path)) == {"model.a", "average.a"}
    assert tensors.load_metadata(path) == {"counts": "1"}


def test_one_process_is_a_world_of_its_own() -> None:
    check: Callable[[], tuple[int, int]] = loop.world
    assert check() == (0, 1)
