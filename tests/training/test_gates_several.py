"""Gates that several processes train, or that see several batches in each step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_training import finished, put_gates_in, run, training
from safetensors.torch import load_file
from tiny_clip import write_clip
from tiny_loras import experts_for, write_lora

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.mixture import attach
from composer.training.gates.judges import Judged
from composer.training.gates.paper import ClipGuidance

# One thread, so that neither order of sums nor a busy machine decides.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TOGETHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
OBJECTIVES = ["judged", "paper"]


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.fixture(scope="module")
def clip(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_clip(tmp_path_factory.mktemp("clip"), tiny_sd))


def settings_of(objective: str, clip: str) -> dict[str, Any]:
    return {"paper": True, "clip": clip} if objective == "paper" else {}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_process_follows_the_lanes_that_are_its_own(
    model: Model, clip: str, tmp_path: Path, objective: str
) -> None:
    """Two processes see, between them, what one sees that accumulates two batches; over the end of
    a sampling too."""
    config = training(tmp_path, batch_size=2, **settings_of(objective, clip))
    kind: Any = ClipGuidance if config.paper else Judged
    experts = experts_for(model, tmp_path)

    def losses(numbers: range, lanes: int = 2) -> dict[int, tuple[float, ...]]:
        with attach(model.models, {e.name: e.sites for e in experts}, granularity="block") as some:
            learning = finished(kind.prepare(model, some, config))
            learning.lanes = lanes
            put_gates_in(model, some, config)
            batches = {number: learning.batch(number) for number in numbers}
        return {n: (float(b.loss.detach()), *b.figures.values()) for n, b in batches.items()}

    together, first, second = losses(range(10)), losses(range(0, 10, 2)), losses(range(1, 10, 2))
    assert together == first | second
    assert len({loss for loss, *_ in together.values()}) == 10  # no lane draws another's pictures
    assert losses(range(4), lanes=1)[1] != together[1]


@pytest.mark.parametrize(
    ("objective", "stop_after"),
    [
        ("judged", 2),
        ("paper", 3),
        pytest.param("judged", 3, marks=pytest.mark.slow),
        pytest.param("paper", 2, marks=pytest.mark.slow),
    ],
)
def test_what_accumulates_is_resumed_too(
    model: Model, clip: str, tmp_path: Path, objective: str, stop_after: int
) -> None:
    """In the middle of a sampling of three steps, and at its end."""
    experts = experts_for(model, tmp_path)
    values = settings_of(objective, clip) | {"accumulation": 2, "batch_size": 2, "steps": 5}
    whole = run(model, experts, training(tmp_path / "whole", **values))
    stopped = training(tmp_path / "stopped", **values)
    first = run(model, experts, stopped, stop_after=stop_after)
    rest = run(model, experts, training(tmp_path / "stopped", resume=True, **values))
    assert {s: r.loss for s, r in (first | rest).items()} == {s: r.loss for s, r in whole.items()}


def trained(*launcher: str, folder: Path, model: Path, output: Path, more: list[str]) -> Any:
    """The gates that `train-gates` writes."""
    words = ["train-gates", "ada", "ink", "--lora-dir", folder, "--output", output]
    words += ["--model", model, "--device", "cpu", "--steps", "3", "--batch-size", "2"]
    words += ["--prompt", "ada in ink", "--prompt", "ink, ada", *more]
    command = [sys.executable, *launcher, "-m", "composer", *map(str, words)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(output)


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_twice_the_batch(
    tiny_sd: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate(("ada", "ink")):
        write_lora(tmp_path / f"{name}.safetensors", seed=seed)
    given = {"folder": tmp_path, "model": tiny_sd}
    twice = ["--accumulation", "2"]
    one = trained(output=tmp_path / "one.safetensors", more=twice, **given)
    two = trained(*TOGETHER, output=tmp_path / "two.safetensors", more=[], **given)
    alone = trained(output=tmp_path / "alone.safetensors", more=[], **given)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)
    # The other half of the batch counts: without it, other gates come out.
    assert any((alone[name] - tensor).abs().max() > 1e-3 for name, tensor in one.items())
