"""What MixLoRA's experts cost, in time and memory, beside a loop over them and beside LoRA."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.mixlora.memory import measure_memory
from benchmarks.mixlora.ways import (
    BARE,
    LOOP,
    LORA,
    OURS,
    PACKAGE,
    SHARED,
    TWO,
    WAYS,
    Shape,
    build,
    trained,
    words,
)
from benchmarks.shared.options import plain_parser, publish
from benchmarks.shared.results import Row

NAME = "mixlora.cost"
PHASES = ("inference", "forward", "backward")
SAVED = {"inference": 17.0, "forward": 13.6, "backward": 7.6}
"""What the authors' optimisation saves on LLaMA2-7B, in percent (papers' table 6)."""
TIMES_LORA, SHARE_OF_TWO = 1.8, 58.0

Times = Mapping[str, list[tuple[float, ...]]]


def clock(device: str) -> float:
    """The time when all work given to the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def once(model: Any, ids: Tensor, device: str) -> tuple[float, ...]:
    """Seconds of inference, and of forward and backward in training."""
    model.eval()
    begun = clock(device)
    with torch.no_grad():
        model(input_ids=ids)
    inferred = clock(device)
    model.train()
    loss = model(input_ids=ids, labels=ids).loss
    forward = clock(device)
    if loss.requires_grad:  # else there is nothing to train
        loss.backward()
    done = clock(device)
    model.zero_grad(set_to_none=True)
    return inferred - begun, forward - inferred, done - forward


def models_of(shape: Shape, batch: int) -> tuple[dict[str, nn.Module], str]:
    """A model for each way, and why the authors' package is not among them, if it is not."""
    models: dict[str, nn.Module] = {}
    why = ""
    for way in (*WAYS, TWO):
        try:
            models[way] = build(way, shape, batch)
        except Exception as error:  # the package may be missing, or not fit these libraries
            if way != PACKAGE:
                raise
            why = f"{type(error).__name__}: {error}"
    return models, why


def check(models: Mapping[str, nn.Module], ids: Tensor) -> None:
    """Stop unless all MixLoRAs of the same weights predict the same."""
    found = {
        way: cast(Any, models[way].eval())(input_ids=ids).logits
        for way in (OURS, LOOP, SHARED, PACKAGE)
        if way in models
    }
    for way, logits in found.items():
        error = float(((logits - found[OURS]).abs().max() / found[OURS].abs().max()).detach())
        print(f"{way}: off by {error:.1e}", flush=True)
        if error > 1e-3:
            raise RuntimeError(f"{way} computes something else.")


def time_all(models: Mapping[str, nn.Module], ids: Tensor, device: str, rounds: int) -> Times:
    """Round by round, so that a busy machine is busy for all ways alike."""
    found: dict[str, list[tuple[float, ...]]] = {way: [] for way in models}
    for number in range(-1, rounds):
        for way, model in models.items():
            seconds = once(model, ids, device)
            if number >= 0:  # the first warms up
                found[way].append(seconds)
        print(f"round {number + 1} of {rounds}", flush=True)
    return found


def ratio(times: Times, way: str, other: str, phase: int) -> float:
    """The median over rounds of how many times as long one took as the other."""
    pairs = zip(times[way], times[other], strict=True)
    return median(one[phase] / two[phase] for one, two in pairs)


def time_rows(times: Times, models: Mapping[str, nn.Module], tokens: int, why: str) -> list[Row]:
    """One row for each way."""
    rows: list[Row] = []
    for way, seconds in times.items():
        row: dict[str, Any] = {"table": "Time", "way": way}
        row["trained (millions)"] = round(trained(models[way]) / 1e6, 3)
        for number, phase in enumerate(PHASES):
            if way == BARE and phase == "backward":
                row[f"{phase} (µs/token)"] = None
                continue
            each = median(one[number] for one in seconds) / tokens
            row[f"{phase} (µs/token)"] = round(each * 1e6, 1)
        rows.append(row)
    if why:
        rows.append({"table": "Time", "way": f"{PACKAGE}: {why}"})
    return rows


def goal_rows(times: Times, memory: Mapping[str, dict[str, float]]) -> list[Row]:
    """What was asked for, and what was measured."""
    rows: list[Row] = []
    for number, phase in enumerate(PHASES):
        saved = (1.0 - ratio(times, OURS, LOOP, number)) * 100.0
        asked = f"more than {SAVED[phase]} %"
        rows.append(_goal(f"time saved over a loop over experts, {phase}", f"{saved:.1f} %", asked))
    for number, phase in enumerate(PHASES):
        times_lora = ratio(times, OURS, LORA, number)
        rows.append(_goal(f"times LoRA's, {phase}", f"{times_lora:.2f}", f"below {TIMES_LORA}"))
    for phase in ("inference", "training"):
        share = memory[TWO][phase] / (2.0 * memory[OURS][phase]) * 100.0
        what = f"memory of two on one base, of that of two apart, {phase}"
        rows.append(_goal(what, f"{share:.1f} %", f"at most {SHARE_OF_TWO:.0f} %"))
    return rows


def _goal(what: str, measured: str, asked: str) -> Row:
    return {"table": "Against what was asked for", "figure": what, "here": measured, "asked": asked}


def memory_rows(memory: Mapping[str, dict[str, float]]) -> list[Row]:
    """One row for each way."""
    return [
        {
            "table": "Memory at the peak",
            "way": way,
            "inference (MB)": round(found["inference"]),
            "training step (MB)": round(found["training"]),
        }
        for way, found in memory.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write results."""
    asked = plain_parser(NAME, __doc__)
    whole = {"hidden": 512, "inner": 1376, "layers": 4, "words": 4096, "experts": 8, "top_k": 2}
    whole |= {"rank": 16, "batch": 4, "tokens": 256, "count": 9, "threads": 1}
    whole |= {"memory_hidden": 4096, "memory_inner": 11008, "memory_layers": 2}
    whole |= {"memory_tokens": 64}
    for name, value in whole.items():
        option = f"--{name.replace('_', '-')}"
        asked.add_argument(option, type=int, default=value, help="(%(default)s)")
    asked.add_argument("--dropout", type=float, default=0.0, help="(%(default)s)")
    asked.add_argument("--device", default="cpu", help="(%(default)s)")
    given = asked.parse_args(arguments)
    torch.set_num_threads(given.threads)
    shape = Shape(**{field.name: getattr(given, field.name) for field in fields(Shape)})
    models, why = models_of(shape, given.batch)
    ids = words(shape, given.batch, given.tokens)
    check(models, ids)
    times = time_all(models, ids, shape.device, given.count)
    large = replace(
        shape,
        hidden=given.memory_hidden,
        inner=given.memory_inner,
        layers=given.memory_layers,
    )
    memory: dict[str, dict[str, float]] = {}
    for way in (OURS, TWO, LOOP, LORA):
        batch = 4 if way == TWO else 2  # two models have a batch each
        memory[way] = measure_memory(way, large, batch, given.memory_tokens)
        print(f"{way}: {memory[way]}", flush=True)
    rows = goal_rows(times, memory)
    rows += time_rows(times, models, ids.numel(), why) + memory_rows(memory)
    publish(
        NAME,
        rows,
        arguments,
        title="MixLoRA: what its experts cost",
        notes=[
            "A Llama of random weights in float32. All MixLoRAs have the same weights, and their "
            "outputs are checked to agree. Each round runs every way once; ratios are medians over "
            "rounds, so other work on the machine hardly changes them. The loop over experts is "
            "the authors' code without its optimisation, the one with W1 and W3 shared the one "
            "with it. Two MixLoRAs on one base share the batch, half of its rows each.",
            "The authors' package (mixlora 0.2.3, installed for this run alone) keeps its experts "
            "outside the model's parameters, so that they are not counted as trained; its backward "
            "pass does the same work.",
            f"Memory: each way in its own process, minus what the libraries take, for a model "
            f"of {large.layers} layers of the widths {large.hidden} and {large.inner} (LLaMA2-7B's "
            f"are 4096 and 11008) with 2 rows of {given.memory_tokens} words for each adapter. "
            "Asked for are the authors' figures on LLaMA2-7B: what their optimisation saves, and "
            "two models in 58 % of the memory of two apart.",
        ],
        settings={"batch": given.batch, "tokens": given.tokens, "threads": given.threads}
        | {key: value for key, value in asdict(shape).items() if key != "device"},
        folder=given.results,
    )


if __name__ == "__main__":
    main()
