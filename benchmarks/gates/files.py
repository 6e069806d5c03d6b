"""The gate files of a benchmark: trained when they are not there yet, by their settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gates.curves import curve_path
from benchmarks.shared.pictures import Studio
from composer.training.gates.prompts import Called, draft_prompts
from composer.training.gates.settings import GateTraining
from composer.training.gates.train import train_gates
from toybox.world import Element


def default_training(output: Path, elements: Sequence[Element], **changes: Any) -> GateTraining:
    """The default settings for these elements' LoRAs, in the fastest precision because
    there are many trainings."""
    called = [Called(name=e.name, trigger=e.trigger, role=e.kind) for e in elements]
    drafted = draft_prompts(called)
    config = GateTraining(
        output=output,
        prompts=drafted.composed,
        alone=drafted.alone,
        precision="auto",
    )
    return dataclasses.replace(config, **changes)


def trained(studio: Studio, folder: Path, elements: Sequence[Element], **changes: Any) -> Path:
    """The gate file for these elements, with `changes` of the default settings."""
    folder.mkdir(parents=True, exist_ok=True)
    config = default_training(folder / "gates.safetensors", elements, **changes)
    experts = [studio.expert(element.name) for element in elements]
    settings = {name: v for name, v in config.to_json().items() if name != "output"}
    decides = [settings, [expert.tensor_hash for expert in experts], studio.model.hash]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:10]
    name = "+".join(element.file for element in elements)
    config = dataclasses.replace(config, output=folder / f"{name}-{digest}.safetensors")
    if config.output.exists():
        return config.output
    begun = printed = time.monotonic()
    curve: list[tuple[int, float]] = []
    for progress in train_gates(studio.model, experts, config):
        if progress.stage == "train" and "loss" in progress.losses:
            curve.append((progress.step, progress.losses["loss"]))
        if time.monotonic() - printed > 15:
            printed = time.monotonic()
            print(f"gates of {name}: {progress}", flush=True)
    print(f"gates of {name}: trained in {time.monotonic() - begun:.0f} s", flush=True)
    curve_path(config.output).write_text(json.dumps(curve))
    return config.output
