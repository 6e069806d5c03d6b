"""Processes that train together train one LoRA, the one that a single process would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

# One thread, so that neither order of sums nor a busy machine decides.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TOGETHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "foxes"
    path.mkdir()
    for colour in ("red", "blue", "green"):
        Image.new("RGB", (16, 16), colour).save(path / f"{colour}.png")
        (path / f"{colour}.txt").write_text(f"zibo, {colour}", encoding="utf-8")
    return path


def trained(
    *launcher: str, model: Path, folder: Path, output: Path, accumulation: int
) -> tuple[dict[str, torch.Tensor], str]:
    """The factors that `train-lora` writes, and what it says."""
    settings = ["--model", str(model), "--steps", "4", "--batch-size", "2", "--warmup", "0"]
    settings += ["--rank", "2", "--text-encoder", "--flip", "--caption-dropout", "0.3"]
    settings += ["--accumulation", str(accumulation), "--file-type", "float32", "--device", "cpu"]
    command = [sys.executable, *launcher, "-m", "composer", "train-lora", str(folder), str(output)]
    done = subprocess.run(
        [*command, *settings], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return load_file(output), done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_twice_the_batch(
    tiny_sd: Path, folder: Path, tmp_path: Path
) -> None:
    """Twice the batch by accumulation, for then the same pictures meet the same noise."""
    one, _ = trained(
        model=tiny_sd, folder=folder, output=tmp_path / "one.safetensors", accumulation=2
    )
    two, said = trained(
        *TOGETHER, model=tiny_sd, folder=folder, output=tmp_path / "two.safetensors",
        accumulation=1,
    )  # fmt: skip
    alone, _ = trained(
        model=tiny_sd, folder=folder, output=tmp_path / "alone.safetensors", accumulation=1
    )
    assert said.count("step 4/4") == 1, "only the first process speaks"
    assert one.keys() == two.keys()
    for name, factor in one.items():
        torch.testing.assert_close(two[name], factor, atol=1e-5, rtol=1e-4)
    # The other half of the batch counts: without it, other factors come out.
    assert any((alone[name] - factor).abs().max() > 1e-3 for name, factor in one.items())
