"""How long a pair's gates train with the default settings of the page."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gates.files import default_training
from benchmarks.shared.options import plain_parser, publish
from benchmarks.shared.results import ROOT, Row
from composer.diffusion.load import load_model
from composer.experts import Expert, ModuleNames, read_expert
from composer.training.gates.train import train_gates
from composer.training.settings import Precision
from toybox.world import Element, element

NAME = "gates.training_time"
PAIRS = (("top hat", "neon"), ("top hat", "sunglasses"))
"""One whose gates see the whole picture, and one whose gates know where each is called to."""
PRECISIONS: tuple[Precision, ...] = ("float32", "auto")
ASKED = 180.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Train each pair in each precision, once, on a machine that does nothing else."""
    asked = plain_parser(NAME, __doc__)
    asked.add_argument("--model", type=Path, default=ROOT / "assets/toybox", help="model folder")
    asked.add_argument("--loras", type=Path, default=ROOT / "loras", help="folder of the LoRAs")
    asked.add_argument("--optimiser-steps", type=int, help="fewer, for a trial")
    given = asked.parse_args(arguments)
    model = load_model(given.model)
    modules = ModuleNames.of(model.models, model=model.name)

    def read(part: Element) -> Expert:
        path = given.loras / f"{part.file}.safetensors"
        return read_expert(path, modules, name=part.name)

    rows: list[Row] = []
    for names in PAIRS:
        some = [element(name) for name in names]
        experts = [read(part) for part in some]
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                config = default_training(Path(folder) / "gates.safetensors", some)
                config = dataclasses.replace(config, precision=precision)
                if given.optimiser_steps:
                    config = dataclasses.replace(config, steps=given.optimiser_steps)
                seconds: dict[str, float] = {}
                begun = time.monotonic()
                for report in train_gates(model, experts, config):
                    seconds[report.stage] = time.monotonic() - begun
            rows.append(
                {
                    "LoRAs": " and ".join(names),
                    "precision": precision,
                    "threads": torch.get_num_threads(),
                    "steps": config.steps,
                    "LoRAs alone (s)": round(seconds["alone"], 1),
                    "all (s)": round(seconds["saved"], 1),
                    "asked for": f"≤ {ASKED:g} s",
                }
            )
            print(rows[-1], flush=True)
    publish(
        NAME,
        rows,
        arguments,
        title="How long gates train",
        notes=["The default settings of the page, without preview pictures."],
        folder=given.results,
    )


if __name__ == "__main__":
    main()
