"""What cannot be trained on is refused before any work, with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.training.lora.settings import LoraTraining
from composer.training.lora.train import train_lora
from composer.training.pictures import TrainingPicture

RED = Image.new("RGB", (16, 16), "red")


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> Model:
    return load_model(tiny_sd)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("to_q", "to_banana")}, r"U-Net has no layer named 'to_banana'.*to_k"),
        ({"targets": ("norm1",)}, "no layer named 'norm1'"),
        ({"text_encoder": True, "text_targets": ("query",)}, r"text encoder.*q_proj"),
        ({"resolution": 17}, "multiple of 2"),
    ],
)
def test_settings_that_do_not_fit_the_model(
    model: Model, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    config = LoraTraining(output=tmp_path / "x.safetensors", **settings)
    with pytest.raises(ComposerError, match=message):
        train_lora(model, config, pictures=[TrainingPicture(image=RED, caption="red")])


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (None, "give a folder"),
        ([], "no picture to train on"),
        ([TrainingPicture(image=RED, caption="red", is_prior=True)], "besides prior"),
        ([TrainingPicture(image=RED, caption="")], "1 pictures have no caption"),
    ],
)
def test_pictures_that_are_not_there(
    model: Model, tmp_path: Path, pictures: list[TrainingPicture] | None, message: str
) -> None:
    config = LoraTraining(output=tmp_path / "x.safetensors")
    with pytest.raises(ComposerError, match=message):
        train_lora(model, config, pictures=pictures)


def test_a_file_where_the_folder_should_be(model: Model, tmp_path: Path) -> None:
    (tmp_path / "loras").write_text("", encoding="utf-8")
    config = LoraTraining(output=tmp_path / "loras" / "x.safetensors")
    with pytest.raises(ComposerError, match="another output"):
        train_lora(model, config, pictures=[TrainingPicture(image=RED, caption="red")])


def test_float16_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    half = load_model(tiny_sd, dtype=torch.float16)
    config = LoraTraining(output=tmp_path / "x.safetensors")
    with pytest.raises(ComposerError, match="float32"):
        train_lora(half, config, pictures=[TrainingPicture(image=RED, caption="red")])
