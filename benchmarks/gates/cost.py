"""What gated experts cost: a step of the U-Net fused, gated, constant, and with set_adapters.

Memory is measured in a process of its own for each line, which this module starts itself
(`--memory`).
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.gates.cost_ways import SUBJECTS, WAYS, Subject, Way
from benchmarks.shared.intervals import interval_columns
from benchmarks.shared.markdown import markdown_tables
from benchmarks.shared.options import Options, options, parser
from benchmarks.shared.results import ROOT, Row
from composer.evaluation.intervals import RESAMPLES, Interval

NAME = "gates.cost"
COUNTS = (1, 2, 3, 5, 8)
FLOOR, OTHERS = "fused", "set_adapters"
NEAR = 1e-4  # the greatest difference of two ways, of the greatest value
Times = dict[str, list[float]]


@torch.no_grad()
def check(subject: Subject, ways: dict[str, Any]) -> None:
    """Stop unless the three ways of one constant sum predict the same."""
    plain, *constant = (
        ways[name](**subject.inputs).sample for name in (FLOOR, "constant gates", OTHERS)
    )
    for found in constant:
        apart = float((found - plain).abs().max() / plain.abs().max())
        assert apart < NEAR, f"{subject.name}: the ways are {apart:.2g} apart"


@torch.no_grad()
def measure(ways: dict[str, Any], subject: Subject, rounds: int) -> tuple[Times, Times]:
    """CPU time and wall-clock time of a step in seconds, round by round, each round in another
    order, so that other work on the machine disturbs all ways alike."""
    times: Times = {name: [] for name in ways}
    wall: Times = {name: [] for name in ways}
    names = list(ways)
    for model in ways.values():
        model(**subject.inputs)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begun, began = time.perf_counter(), time.process_time()
            ways[name](**subject.inputs)
            times[name].append(time.process_time() - began)
            wall[name].append(time.perf_counter() - begun)
    return times, wall


def ratio(times: Sequence[float], beside: Sequence[float]) -> Interval:
    """The ratio of two medians; its interval comes from resampling rounds, both ways together."""
    both = np.asarray([times, beside])
    drawn = np.random.default_rng(0).integers(both.shape[1], size=(RESAMPLES, both.shape[1]))
    again = np.median(both[:, drawn], axis=2)  # (2, resamples)
    low, high = np.percentile(again[0] / again[1], (2.5, 97.5))
    return Interval(value=median(times) / median(beside), low=float(low), high=float(high))


def rows_of(subject: Subject, experts: int, setup: Options, rounds: int) -> list[Row]:
    """One line for each way of using so many experts."""
    factors = subject.experts(experts)
    ways = {name: way(subject, factors) for name, way in WAYS.items()}
    check(subject, ways)
    times, wall = measure(ways, subject, rounds)
    rows: list[Row] = [
        {
            "table": f"{subject.title}: {subject.loras}",
            "experts": experts,
            "way": name,
            "rounds": rounds,
            "a step (s)": round(median(wall[name]), 4),
            "CPU time of a step (s)": round(median(times[name]), 4),
            **interval_columns("beside fused (×)", ratio(times[name], times[FLOOR])),
            **interval_columns("beside set_adapters (×)", ratio(times[name], times[OTHERS])),
        }
        for name in ways
    ]
    print(markdown_tables(rows), flush=True)
    # Once they are fused, their number is of no matter.
    held = [memory(subject.name, n, 1 if n == FLOOR else experts, setup) for n in ways]
    return [{**row, "peak memory (MB)": most} for row, most in zip(rows, held, strict=True)]


@cache
def memory(subject: str, way: str, experts: int, setup: Options) -> int:
    """The most memory a process of its own held during a step, MB."""
    words = ["--memory", subject, way, str(experts)]
    folders = ["--model", str(setup.model), "--loras", str(setup.loras)]
    command = [sys.executable, "-m", f"benchmarks.{NAME}", *words, *folders]
    ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return round(int(ended.stdout.split()[-1]) / 1000)


def peak(subject: Subject, way: Way, experts: int) -> int:
    """The most memory this process holds during a step, kB."""
    model = way(subject, subject.experts(experts))
    subject.forget()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again from what is held now
    with torch.no_grad():
        model(**subject.inputs)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write results."""
    asked = parser(NAME, __doc__ or "", count=7, what="rounds, twenty times as many of small steps")
    asked.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    asked.add_argument("--subjects", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    asked.add_argument("--experts", nargs="*", type=int, default=list(COUNTS))
    asked.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    given = asked.parse_args(arguments)
    setup = options(NAME, given, arguments)
    torch.set_num_threads(given.threads)
    if given.memory:
        subject, way, experts = given.memory
        print(peak(SUBJECTS[subject](setup), WAYS[way], int(experts)))
        return
    rows: list[Row] = []
    for name in given.subjects:
        subject = SUBJECTS[name](setup)
        rounds = setup.count * (20 if subject.small else 1)
        for experts in given.experts:
            rows += rows_of(subject, experts, setup, rounds)
    notes = [
        "One call of the U-Net for the two rows of classifier-free guidance. Fused: the experts' "
        "sum in the weights, the floor. Gated: a learned gate with the recommended settings for "
        "each block, not trained. Constant gates: this sum without touching the weights. "
        "set_adapters: diffusers and PEFT, not fused. All hold the same experts; before measuring, "
        f"the three constant ways are checked to agree within {NEAR:g}.",
        "The ways take turns within a round, and each round begins with another way. Ratios are of "
        "medians of CPU time, which other work on the machine disturbs less than wall-clock time; "
        "their intervals come from resampling whole rounds. Memory is the most that a process of "
        "its own holds (VmHWM) during a step, Python and its libraries included. Asked for: "
        "gated with three experts no dearer than set_adapters, and at most 1.10 times the floor.",
    ]
    setup.publish("The cost of gated experts", rows, notes, threads=given.threads)


if __name__ == "__main__":
    main()
