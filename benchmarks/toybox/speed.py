"""How long a picture takes, and what LoRAs add to it, in one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

import torch

from benchmarks.shared.intervals import interval_columns
from benchmarks.shared.options import Options, options, parser
from benchmarks.shared.results import Row
from composer.diffusion.load import load_model
from composer.diffusion.model import Model
from composer.diffusion.request import Request
from composer.diffusion.sample import generate
from composer.evaluation.intervals import bootstrap_mean
from composer.experts import ModuleNames, read_expert
from composer.mixture import attach
from toybox.measure import SECONDS

NAME = "toybox.speed"
PROMPT = "a cat and a red car on the beach"
WAYS: tuple[tuple[int, int], ...] = ((1, 0), (1, 1), (1, 2), (4, 0), (4, 2))
"""(pictures at once, LoRAs)"""


def seconds(model: Model, setup: Options, pictures: int) -> float:
    """Wall-clock time of a request, from the prompt to the last picture."""
    sampling = setup.sampling
    request = Request(
        prompt=PROMPT,
        seed=1,
        steps=sampling.steps,
        cfg_scale=sampling.cfg_scale,
        sampler=sampling.sampler,
        count=pictures,
    )
    begun = time.perf_counter()
    for _ in generate(model, request):
        pass
    return time.perf_counter() - begun


def measure(model: Model, setup: Options) -> dict[tuple[int, int], list[float]]:
    """Seconds by way, round by round, so that a busy machine is busy for all ways alike."""
    modules = ModuleNames.of(model.models, model=model.name)
    files = sorted(setup.loras.glob("*.safetensors"))[:2]
    experts = {path.stem: read_expert(path, modules, name=path.stem).sites for path in files}
    found: dict[tuple[int, int], list[float]] = {way: [] for way in WAYS if way[1] <= len(experts)}
    for number in range(setup.count):
        for pictures, loras in found:
            with ExitStack() as stack:
                if loras:
                    chosen = dict(list(experts.items())[:loras])
                    stack.enter_context(attach(model.models, chosen))
                found[pictures, loras].append(seconds(model, setup, pictures))
        print(f"round {number + 1} of {setup.count}", flush=True)
    return found


def rows_of(found: dict[tuple[int, int], list[float]]) -> list[Row]:
    """Medians, and ratios to a single picture without LoRAs in the same round."""
    rows: list[Row] = []
    plain = found[1, 0]
    for (pictures, loras), times in found.items():
        each = [t / pictures for t in times]
        ratios = [t / p for t, p in zip(each, plain, strict=True)]
        rows.append(
            {
                "table": "Time of a picture",
                "pictures at once": pictures,
                "LoRAs": loras,
                "rounds": len(times),
                "median (s)": round(median(each), 3),
                **interval_columns("mean (s)", bootstrap_mean(each)),
                "times a single picture without LoRAs": round(median(ratios), 2),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write results."""
    asked = parser(NAME, __doc__ or "", count=7, what="rounds")
    asked.set_defaults(steps=20)
    asked.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    given = asked.parse_args(arguments)
    setup = options(NAME, given, arguments)
    torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    model = load_model(setup.model)
    loaded = time.perf_counter()
    first = seconds(model, setup, 1)
    rows: list[Row] = [
        {
            "table": "The first picture",
            "loading the model (s)": round(loaded - begun, 2),
            "first picture (s)": round(first, 2),
        }
    ]
    rows = rows_of(measure(model, setup)) + rows
    notes = [
        f"Pictures of {model.size} px. Ratios compare times of one round, so other work on the "
        "machine hardly changes them; it does change the seconds. Asked for: a 20-step picture in "
        f"at most {SECONDS:g} s."
    ]
    setup.publish("Speed", rows, notes, threads=given.threads)


if __name__ == "__main__":
    main()
