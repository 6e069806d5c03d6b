"""`composer train-lora` from a folder of pictures to a file, and how it says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from composer.cli import app
from composer.experts import read_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "foxes"
    path.mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (16, 16), color).save(path / f"{color}.png")
        (path / f"{color}.txt").write_text(f"zibo, {color}", encoding="utf-8")
    return path


def test_trains_a_folder(tiny_sd: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "loras" / "zibo.safetensors"
    arguments = ["train-lora", str(folder), str(output), "--model", str(tiny_sd)]
    settings = ["--trigger", "zibo", "--rank", "2", "--steps", "2", "--target", "to_q"]
    result = CliRunner().invoke(app, [*arguments, *settings, "--target", "to_v", "--min-snr", "0"])
    assert result.exit_code == 0, result.output
    assert "step 2/2" in result.output
    header = read_header(output)
    assert {name.split("attn")[1][2:6] for name in header.tensors} == {"to_q", "to_v"}
    assert header.metadata["ss_min_snr_gamma"] == "None"
    assert header.metadata["composer.trigger"] == "zibo"


def test_says_what_is_wrong(tiny_sd: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "zibo.safetensors")
    result = CliRunner().invoke(
        app, ["train-lora", str(tmp_path / "none"), output, "--model", str(tiny_sd)]
    )
    assert result.exit_code == 2
    assert "none: give the folder with the pictures" in result.output.replace("\n", " ")
