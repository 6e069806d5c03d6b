"""The settings of a LoRA training: refused where they cannot work, kept through JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from composer.errors import ComposerError
from composer.training.lora.settings import LoraTraining


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"role": "hero"}, "character, clothing"),
        ({"naming": "a1111"}, "kohya, diffusers"),
        ({"precision": "float16"}, "float32, bfloat16, auto"),
        ({"caption_dropout": 1.5}, "from 0 to 1"),
        ({"prior_share": 1.0}, "between 0 and 1"),
        ({"targets": ()}, "such as to_q"),
        ({"output": Path("fox.pt")}, ".safetensors"),
    ],
)
def test_refuses_what_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        LoraTraining(**{"output": Path("fox.safetensors"), **settings})


def test_survives_json() -> None:
    config = LoraTraining(
        output=Path("loras/fox.safetensors"),
        pictures=Path("foxes"),
        prior_prompts=("a fox", "a dog"),
        alpha=4.0,
        rank=16,
    )
    assert LoraTraining.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.name == "fox"
    assert config.scale == 0.25


def test_names_unknown_settings() -> None:
    with pytest.raises(ComposerError, match="wings"):
        LoraTraining.from_json({"output": "fox.safetensors", "wings": 2})
