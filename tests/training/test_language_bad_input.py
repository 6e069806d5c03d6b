"""What cannot be trained is said before or at the step, and what was good is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from language_training import language, records, run, training, weights
from torch import nn

from composer.errors import ComposerError
from composer.language.mixlora_config import MixLoraConfig
from composer.language.plain_lora import PlainLoraConfig
from composer.language.records import Record
from composer.mixlora import RouterSettings
from composer.training.core import Diverged
from composer.training.language import LanguageTraining, train_adapter


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"output": Path("a.safetensors")}, "is a file's name"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"schedule": "step"}, "'step' is unknown: choose one of constant, cosine, linear"),
        ({"eval_share": 1.0}, "eval_share is 1.0"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ComposerError, match=said):
        training(tmp_path, **settings)


def test_settings_it_does_not_know(tmp_path: Path) -> None:
    values = training(tmp_path).to_json()
    with pytest.raises(ComposerError, match="Unknown training settings speed"):
        LanguageTraining.from_json({**values, "speed": 3})
    values["adapter"]["wings"] = 2
    with pytest.raises(ComposerError, match="wings"):
        LanguageTraining.from_json(values)


def test_data_that_cannot_be_learnt(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with pytest.raises(ComposerError, match="nothing to train on: give a"):
        run(training(tmp_path), records=None)
    with pytest.raises(ComposerError, match="no record"):
        run(training(tmp_path), records=[])
    path.write_text("")
    with pytest.raises(ComposerError, match="holds nothing to learn"):
        run(training(tmp_path, data=path), records=None)
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b" * 70}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ComposerError, match=r"data\.jsonl, line 2: the answer has 71 tokens"):
        run(training(tmp_path, data=path), records=None)
    with pytest.raises(ComposerError, match="leaves none to train on"):
        run(training(tmp_path, eval_share=0.9), records=records(2))
    with pytest.raises(ComposerError, match="this model reads 64 tokens"):
        run(training(tmp_path, window=100))
    assert not (tmp_path / "reverse").exists()


def test_cut_requests_are_told(tmp_path: Path) -> None:
    long = Record(prompt="x" * 100, answer="y")
    reports = run(training(tmp_path, steps=1), records=[long, *records(2)])
    assert {report.cut for report in reports} == {1}


def test_a_base_without_the_named_modules(tmp_path: Path) -> None:
    base = language()
    for adapter in (
        MixLoraConfig(target_modules=("wings",)),
        PlainLoraConfig(target_modules=("wings",)),
    ):
        with pytest.raises(ComposerError, match="wings"):
            list(train_adapter(base, training(tmp_path, adapter=adapter), records=records()))
    # and nothing is left on it
    list(train_adapter(base, training(tmp_path, steps=1), records=records()))


def test_more_experts_picked_than_there_are() -> None:
    with pytest.raises(ComposerError, match="pick 9 of 8 experts"):
        MixLoraConfig(router=RouterSettings(experts=8, top_k=9))


def test_a_base_in_float16(tmp_path: Path) -> None:
    base = language()
    base.model.half()
    with pytest.raises(ComposerError, match="small gradients vanish"):
        train_adapter(base, training(tmp_path), records=records())


class Poison(nn.Module):
    """An output layer that gives no number in some of its calls in training."""

    def __init__(self, inner: nn.Module, *bad: int) -> None:
        super().__init__()
        self.inner, self.bad, self.calls = inner, bad, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(hidden)
        if self.training:
            self.calls += 1
            if self.calls in self.bad:
                return out * float("nan")
        return out


def test_the_third_bad_step_in_a_row_stops_and_keeps_the_last_good(tmp_path: Path) -> None:
    base = language()
    base.model.lm_head = Poison(base.model.lm_head, 3, 4, 5)
    config = training(tmp_path)
    with pytest.raises(Diverged, match="3 steps in a row up to step 5"):
        list(train_adapter(base, config, records=records()))
    # the parameters that gave the second loss, which one step made
    one = training(tmp_path / "one", steps=1)
    run(one)
    kept, expected = weights(config.output), weights(one.output)
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    assert not base.model.training
