"""`composer train-language-gates` from records and LoRAs to a gate file, and answers with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from language_loras import make_lora
from tiny_language import make_tiny_language
from typer.testing import CliRunner, Result

from composer.cli import app


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A model, data and two LoRAs."""
    make_tiny_language(tmp_path / "tiny")
    rows = [{"instruction": "Count.", "input": str(i), "output": str(i + 1)} for i in range(8)]
    (tmp_path / "count.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    make_lora("llama", tmp_path / "loras/ada", 1)
    make_lora("llama", tmp_path / "loras/ink", 2, rank=3)
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(home: Path, *more: object) -> Result:
    return call(
        "train-language-gates", home / "count.jsonl", home / "loras/ada", home / "loras/ink",
        "--model", home / "tiny", "--output", home / "loras/gates/both.safetensors",
        "--template", "plain", "--steps", 3, "--batch-size", 2, *more,
    )  # fmt: skip


def complete(home: Path, *more: object) -> Result:
    return call(
        "complete", "Count.", "--input", "3", "--model", home / "tiny", "--template", "plain",
        "--tokens", 4, "--json", *more,
    )  # fmt: skip


def test_trains_and_completes(home: Path) -> None:
    result = train(home, "--eval-share", 0.25)
    assert result.exit_code == 0, result.output
    assert "step 3/3" in result.output
    assert "ada 0.5" in result.output
    file = home / "loras/gates/both.safetensors"
    made = complete(home, "--gates", file)
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)[0]["request"] == "Count."
    file.rename(home / "both.safetensors")
    elsewhere = complete(home, "--gates", home / "both.safetensors", "--lora-dir", home / "loras")
    assert elsewhere.stdout == made.stdout
    missing = complete(home, "--gates", home / "both.safetensors")
    assert missing.exit_code == 2
    assert "'ada', which is not here" in " ".join(missing.output.split())


def test_says_what_is_wrong(home: Path) -> None:
    def said(result: Result) -> str:
        assert result.exit_code == 2, result.output
        return " ".join(result.output.split())

    assert "granularity 'word' is unknown" in said(train(home, "--granularity", "word"))
    assert "activation 'loud' is unknown" in said(train(home, "--activation", "loud"))
    assert "no places" in said(train(home, "--input", "placed"))
    made = call(
        "train-language-gates", home / "count.jsonl", home / "loras/ada", home / "nothing",
        "--model", home / "tiny", "--output", home / "x.safetensors",
    )  # fmt: skip
    assert "has no adapter_model.safetensors" in said(made)
    assert not (home / "x.safetensors").exists()
    both = complete(home, "--gates", home / "x.safetensors", "--adapter", home / "loras/ada")
    assert "--gates or --adapter" in said(both)
