"""A stopped training goes on as if it had never stopped, or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.training.lora.settings import LoraTraining
from composer.training.lora.train import train_lora
from composer.training.pictures import TrainingPicture

STEPS = 6


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


def pictures(color: str = "red") -> list[TrainingPicture]:
    return [
        TrainingPicture(image=Image.new("RGB", (16, 16), color), caption="zibo"),
        TrainingPicture(image=Image.new("RGB", (16, 16), "blue"), caption="zibo at night"),
        TrainingPicture(image=Image.new("RGB", (16, 16), "grey"), caption="grey", is_prior=True),
    ]


def training(folder: Path, **settings: Any) -> LoraTraining:
    values = {
        "output": folder / "zibo.safetensors",
        "rank": 2,
        "steps": STEPS,
        "batch_size": 3,
        "learning_rate": 1e-2,
        "text_encoder": True,
        "caption_dropout": 0.3,
        "flip": True,
        "noise_offset": 0.1,
        "checkpoint_every": 4,
        "file_type": "float32",
    }
    return LoraTraining(**{**values, **settings})


def run(model: Model, config: LoraTraining, *, stop_after: int = STEPS) -> dict[int, float | None]:
    """The loss of each step that was made."""
    made: dict[int, float | None] = {}
    reports = train_lora(
        model,
        config,
        pictures=pictures(),
        cancelled=lambda: stop_after in made and stop_after < STEPS,
    )
    for report in reports:
        if report.stage == "train":
            made[report.step] = report.loss
    return made


@pytest.mark.parametrize(
    ("optimizer", "stop_after"), [("adamw", 1), ("adamw", 4), ("adamw", 5), ("muon", 5)]
)
def test_resumed_is_uninterrupted(
    model: Model, tmp_path: Path, optimizer: str, stop_after: int
) -> None:
    whole = training(tmp_path / "whole", optimizer=optimizer)
    expected = run(model, whole)
    config = training(tmp_path / "parts", optimizer=optimizer, resume=True)
    first = run(model, config, stop_after=stop_after)
    assert list(first) == list(range(1, stop_after + 1))
    assert not config.output.exists()
    assert config.checkpoint.is_file()
    second = run(model, config)
    assert list(second) == list(range(stop_after + 1, STEPS + 1))
    assert {**first, **second} == expected
    there, here = load_file(whole.output), load_file(config.output)
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in there)
    assert not config.checkpoint.exists()


def test_a_killed_training_goes_on_from_its_checkpoint(model: Model, tmp_path: Path) -> None:
    expected = run(model, training(tmp_path / "whole"))
    config = training(tmp_path / "parts", resume=True)
    for report in train_lora(model, config, pictures=pictures()):
        if report.stage == "train" and report.step == 5:
            break  # as if the process had ended: the state of step 4 is what remains
    resumed = run(model, config)
    assert resumed == {step: expected[step] for step in (5, 6)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 3}, "rank 2, not 3"),
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"seed": 1}, "seed"),
    ],
)
def test_another_training_cannot_be_resumed(
    model: Model, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    run(model, training(tmp_path), stop_after=1)
    with pytest.raises(ComposerError, match=message):
        run(model, training(tmp_path, resume=True, **settings))


def test_other_pictures_cannot_be_resumed(model: Model, tmp_path: Path) -> None:
    run(model, training(tmp_path), stop_after=1)
    with pytest.raises(ComposerError, match="other pictures"):  # before any work
        train_lora(model, training(tmp_path, resume=True), pictures=pictures("green"))


def test_a_broken_state_is_named(model: Model, tmp_path: Path) -> None:
    run(model, training(tmp_path), stop_after=1)
    state = training(tmp_path).checkpoint
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ComposerError, match=r"zibo\.resume is no training state"):
        run(model, training(tmp_path, resume=True))
