"""The memory that a way of adapting a language model takes, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any, cast

import torch

from benchmarks.mixlora.ways import Shape, build, words
from benchmarks.shared.peak import forget_peak, memory
from benchmarks.shared.results import ROOT


def measure_memory(way: str, shape: Shape, batch: int, tokens: int) -> dict[str, float]:
    """MB at the peak of inference and of a training step, over what the libraries take."""
    settings = {"way": way, "batch": batch, "tokens": tokens, "shape": asdict(shape)}
    command = [sys.executable, "-m", "benchmarks.mixlora.memory", json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak(way: str, shape: Shape, batch: int, tokens: int) -> dict[str, float]:
    """The same in this process."""
    # what the libraries load lazily, before it counts
    tiny = replace(shape, hidden=64, inner=64, layers=1, words=64)
    run(build(way, tiny, batch), tiny, batch, 2, train=True)
    begun = memory("VmRSS", shape.device)
    model = build(way, shape, batch)
    found: dict[str, float] = {}
    for phase in ("inference", "training"):
        forget_peak(shape.device)
        run(model, shape, batch, tokens, train=phase == "training")
        found[phase] = memory("VmHWM", shape.device) - begun
    return found


def run(model: Any, shape: Shape, batch: int, tokens: int, *, train: bool) -> None:
    """One pass, in training with its gradients, which stay: as an optimizer finds them."""
    ids = words(shape, batch, tokens)
    model.train(train)
    with torch.set_grad_enabled(train):
        if train:
            model(input_ids=ids, labels=ids).loss.backward()
        else:
            model(input_ids=ids)


if __name__ == "__main__":
    asked = cast("dict[str, Any]", json.loads(sys.argv[1]))
    asked["shape"] = Shape(**asked["shape"])
    print(json.dumps(peak(**asked)))
