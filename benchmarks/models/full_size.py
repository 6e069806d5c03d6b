"""Models at their published size, with random weights: loading, LoRAs by real names, and gates.

Each model is written to a temporary folder and measured in a process of its own. Peaks of memory
are over what the libraries take. The drawing alone that comes before a training of gates is cut
short, for it takes long and its steps are as the others.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.models.random_model import rule_of_kohya, write_lora, write_model
from benchmarks.shared.options import plain_parser, publish
from benchmarks.shared.peak import forget_peak, memory
from benchmarks.shared.results import ROOT, Row, Value
from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.denoise import latent_shape, predict
from composer.diffusion.load import CONFIGS, load_model
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.experts import Expert, ModuleNames, read_expert
from composer.families import FAMILIES
from composer.mixture import attach
from composer.mixture.build import new_gates
from composer.precision import in_bfloat16
from composer.training.gates import sampling
from composer.training.gates.settings import GateTraining
from composer.training.gates.train import RECOMMENDED, train_gates

NAME = "models.full_size"
TYPES = {"sd1": (torch.float32, "float32"), "sdxl": (torch.float16, "auto")}
"""By a family's configs, the type of its file's numbers and that of those in memory."""
TABLES = ("Loading", "LoRAs by real names", "Work")
ATTACHED = 3
ASKED = 1.15
"""Times its weights that a model may take while it is loaded."""


class Timed:
    """Seconds of what is done within it, and the peak of memory in MB over what the process had
    when this was made."""

    def __init__(self, device: str) -> None:
        self.device, self.base = device, memory("VmRSS", device)
        self.seconds = self.peak = 0.0

    def __enter__(self) -> Timed:
        gc.collect()
        forget_peak(self.device)
        self.begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.begun
        self.peak = memory("VmHWM", self.device) - self.base

    @property
    def columns(self) -> dict[str, Value]:
        return {"time (s)": round(self.seconds, 2), "peak (GB)": round(self.peak / 1000, 2)}


def measure(
    folder: Path, *, name: str, dtype: str, device: str = "cpu", keys: Sequence[Path] = ()
) -> Iterator[Row]:
    """The rows of one model, measured in this process.

    folder: the model's.
    dtype: "auto", or as for `load_model`.
    keys: JSON files of the names and shapes of a LoRA's tensors.
    """
    if dtype == "auto":  # and never float16, in which nothing is trained
        dtype = "bfloat16" if in_bfloat16("auto", device) else "float32"
    timed = Timed(device)
    with timed:
        model = load_model(folder, device=device, dtype=dtype)
    parts = (*model.models.values(), model.vae)
    weights = sum(p.numel() * p.itemsize for part in parts for p in part.parameters()) / 1e6
    yield {
        "table": "Loading",
        "model": name,
        "from": "folder",
        "type": dtype,
        "weights (GB)": round(weights / 1000, 2),
        **timed.columns,
        "peak beside the weights (×)": round(timed.peak / weights, 3),
        "asked for": f"≤ {ASKED:g}",
    }
    modules = ModuleNames.of(model.models, model=name)
    with tempfile.TemporaryDirectory() as place:
        lists = {"kohya's rule": rule_of_kohya(model)}
        lists |= {path.stem: json.loads(path.read_text("utf-8")) for path in keys}
        for title, shapes in lists.items():
            path = write_lora(Path(place) / "lora", shapes, seed=0)
            row: dict[str, Value] = {"table": "LoRAs by real names", "model": name, "names": title}
            try:
                with timed:
                    expert = read_expert(path, modules, name="lora", partial=True)
            except ComposerError as error:
                yield {**row, "refused": str(error).partition(": ")[2]}
                continue
            yield {
                **row,
                "tensors": len(shapes),
                "modules": expert.modules,
                "unmatched": len(expert.unmatched),
                **timed.columns,
            }
            del expert
        shapes = next(iter(lists.values()))
        experts = [
            read_expert(
                write_lora(Path(place) / f"lora{n}", shapes, seed=n), modules, name=f"lora{n}"
            )
            for n in range(ATTACHED)
        ]
        yield from _work(model, experts, timed, name=name, place=Path(place))


def _work(
    model: Model, experts: Sequence[Expert], timed: Timed, *, name: str, place: Path
) -> Iterator[Row]:
    def row(what: str, **more: Value) -> Row:
        return {"table": "Work", "model": name, "what": what, **timed.columns, **more}

    before = fingerprint(model)
    sites = {expert.name: expert.sites for expert in experts}
    with timed:
        mixture = attach(model.models, sites, granularity="block")
    yield row(f"attach {len(experts)} LoRAs")
    text = encode_prompts(model, "a cat", "").rows
    noisy = torch.randn(1, *latent_shape(model)).to(model.device)
    timestep = torch.tensor(500, device=model.device)

    @torch.no_grad()
    def step() -> None:
        predict(model, noisy, timestep, text, 7.0)

    gates = {"unet": replace(RECOMMENDED, input="hidden")}
    mixture.set_gates(new_gates(mixture, gates, step, seed=0))
    with timed:
        step()
    yield row(f"a gated step of {model.size} px")
    with timed:
        mixture.detach()
    yield row("detach", exact=fingerprint(model) == before)
    config = GateTraining(
        output=place / "gates.safetensors",
        prompts=("a cat",),
        alone={expert.name: ("a cat",) for expert in experts},
        steps=2,
        batch_size=1,
        precision="auto",
        gradient_checkpointing=True,
    )
    with _little_alone():
        seconds: list[float] = []
        with timed:
            for report in train_gates(model, experts, config):
                if report.stage == "train":
                    seconds.append(time.perf_counter())
    timed.seconds = seconds[1] - seconds[0]
    yield row(f"a training step of gates of {model.size} px", exact=fingerprint(model) == before)


def fingerprint(model: Model) -> str:
    """Of the names and bits of all weights."""
    digest = hashlib.sha256()
    for part, root in model.models.items():
        for name, tensor in root.state_dict().items():
            digest.update(f"{part}.{name}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def _little_alone() -> Generator[None]:
    """One picture of two steps is drawn by each LoRA alone."""
    before = sampling.STEPS, sampling.PICTURES
    sampling.STEPS, sampling.PICTURES = 2, 1
    try:
        yield
    finally:
        sampling.STEPS, sampling.PICTURES = before


def _warm(device: str) -> None:
    """Let the libraries load what they load when first used, before memory and time are measured:
    the pipelines' classes, and what a small model is read and run with."""
    for family in FAMILIES:
        getattr(import_module("diffusers"), family.pipeline)
    model = load_model(ROOT / "assets" / "toybox", device=device)
    text = encode_prompts(model, "a cat", "").rows
    noisy = torch.randn(1, *latent_shape(model)).to(model.device).requires_grad_()
    timestep = torch.tensor(500, device=model.device)
    torch.autograd.backward(predict(model, noisy, timestep, text, 7.0).sum())
    del model, text, noisy
    gc.collect()
    # else what was freed would be used again, and not be counted
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write each model, measure it in a process of its own, and publish the rows."""
    asked = plain_parser(NAME, __doc__)
    asked.add_argument("--model", action="append", choices=TYPES, help="repeatable (all of them)")
    asked.add_argument("--keys", type=Path, help="folder of JSON files: names and shapes of LoRAs")
    asked.add_argument("--pixels", type=int, default=256, help="a picture's side (%(default)s)")
    asked.add_argument("--device", default="cpu", help="(%(default)s)")
    asked.add_argument("--folder", type=Path, help="where models are written for a while")
    asked.add_argument("--measure", help=argparse.SUPPRESS)
    given = asked.parse_args(arguments)
    if given.measure:
        _warm(given.device)
        settings = json.loads(given.measure)
        keys = [Path(path) for path in settings.pop("keys")]
        for row in measure(Path(settings.pop("folder")), keys=keys, **settings):
            print(json.dumps(row), flush=True)
        return
    rows: list[Row] = []
    for family in FAMILIES:
        if family.config not in (given.model or TYPES):
            continue
        written, used = TYPES[family.config]
        prefix = {"sd1": "sd15", "sdxl": "sdxl"}[family.config]
        keys = sorted(given.keys.glob(f"{prefix}_*.json")) if given.keys else []
        with tempfile.TemporaryDirectory(dir=given.folder) as place:
            folder = write_model(
                Path(place) / family.config,
                CONFIGS / family.config,
                family,
                dtype=written,
                pixels=given.pixels,
            )
            rows += _measured(
                {
                    "folder": str(folder),
                    "name": family.name,
                    "dtype": used,
                    "device": given.device,
                    "keys": [str(path) for path in keys],
                }
            )
    rows.sort(key=lambda row: TABLES.index(str(row["table"])))
    notes = [
        "Weights are random: nothing here says how pictures look. Each model is measured in a "
        "process of its own; memory is over what the libraries take. A training step of gates has "
        f"one picture, over {ATTACHED} LoRAs of rank 8, with gradient checkpointing. Steps of two "
        "rows have guidance. A LoRA of which nothing is unmatched is read whole; names are those "
        "that trainers write, of all modules that they train."
    ]
    publish(
        NAME,
        rows,
        arguments,
        title="Models at their published size",
        notes=notes,
        settings={"pixels": given.pixels, "threads": torch.get_num_threads()},
        folder=given.results,
    )


def _measured(settings: dict[str, object]) -> list[Row]:
    """The rows that a process of its own prints, one to a line."""
    command = [sys.executable, "-m", f"benchmarks.{NAME}", "--measure", json.dumps(settings)]
    rows: list[Row] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("{"):
                rows.append(json.loads(line))
    if process.returncode:
        raise SystemExit(f"{settings['name']} could not be measured: see the error above.")
    return rows


if __name__ == "__main__":
    main()
