"""`composer train-mixlora` from records to adapters, and `composer complete` with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_language import make_tiny_language
from typer.testing import CliRunner, Result

from composer.cli import app


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_language(tmp_path / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"instruction": "Count.", "input": str(i), "output": str(i + 1)} for i in range(8)]
    path = tmp_path / "count.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


QUICK = ("--steps", 3, "--rank", 2, "--batch-size", 2, "--dropout", 0)


def test_trains_one_and_completes_with_it(model: Path, data: Path, tmp_path: Path) -> None:
    result = call(
        "train-mixlora", data, tmp_path / "count", "--model", model, "--experts", 4,
        "--eval-share", 0.25, "--template", "plain", *QUICK,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "step 3/3" in result.output
    assert "load 0." in result.output
    config = json.loads((tmp_path / "count/adapter_config.json").read_text())
    assert config["peft_type"] == "MIXLORA"
    assert (config["num_experts"], config["r"], config["lora_alpha"]) == (4, 2, 4)
    made = call(
        "complete", "Count.", "--input", "3", "--model", model, "--adapter", tmp_path / "count",
        "--tokens", 4, "--json",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)[0]["request"] == "Count."


def test_trains_two_at_once_and_a_plain_lora(model: Path, data: Path, tmp_path: Path) -> None:
    result = call(
        "train-mixlora", data, tmp_path / "one", "--model", model, *QUICK,
        "--also", f"{data}={tmp_path / 'two'}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (tmp_path / "one/adapter_model.safetensors").is_file()
    assert (tmp_path / "two/adapter_model.safetensors").is_file()
    result = call(
        "train-mixlora", data, tmp_path / "lora", "--model", model, "--method", "lora", *QUICK
    )
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 2)


def test_says_what_is_wrong(model: Path, data: Path, tmp_path: Path) -> None:
    def said(*more: object) -> str:
        result = call("train-mixlora", data, tmp_path / "out", "--model", model, *more)
        assert result.exit_code == 2, result.output
        assert not (tmp_path / "out").exists()
        return " ".join(result.output.split())

    assert "pick 3 of 2 experts" in said("--experts", 2, "--top-k", 3)
    assert "no method 'dora'" in said("--method", "dora")
    assert "--also 'x' is not understood" in said("--also", "x")
    assert "'2 bits' is unknown" in said("--bits", 2)
    assert "wings" in said("--target", "wings")
    data.write_text('{"instruction": "x"}')
    assert "count.jsonl, line 1" in said()
