"""Processes that train together train one adapter, the one that a single process would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_language import make_tiny_language

# One thread, so that neither order of sums nor a busy machine decides.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TOGETHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def trained(*launcher: str, model: Path, data: Path, output: Path, accumulation: int) -> str:
    """What `train-mixlora` says."""
    settings = ["--model", str(model), "--steps", "3", "--batch-size", "2", "--rank", "2"]
    settings += ["--experts", "4", "--dropout", "0", "--balance", "0", "--device", "cpu"]
    settings += ["--accumulation", str(accumulation), "--eval-share", "0.2"]
    command = [sys.executable, *launcher, "-m", "composer", "train-mixlora", str(data), str(output)]
    done = subprocess.run(
        [*command, *settings], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_twice_the_batch(tmp_path: Path) -> None:
    """Answers differ in length, and each of their tokens counts alike in whatever process it is."""
    model = make_tiny_language(tmp_path / "model")
    data = tmp_path / "words.jsonl"
    rows = [{"prompt": f"{i}>", "completion": "ab" * (1 + i % 5)} for i in range(15)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    trained(model=model, data=data, output=tmp_path / "one", accumulation=2)
    said = trained(*TOGETHER, model=model, data=data, output=tmp_path / "two", accumulation=1)
    assert said.count("step 3/3") == 1, "only the first process speaks"
    one = load_file(tmp_path / "one/adapter_model.safetensors")
    two = load_file(tmp_path / "two/adapter_model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-3)
