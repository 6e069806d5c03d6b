"""What torch.compile saves of MixLoRA's time, and what compiling costs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import nn

from benchmarks.mixlora import PHASES, once
from benchmarks.mixlora_ways import BARE, OURS, WAYS, Shape, words
from composer.evaluation import write_results
from composer.evaluation.results import FOLDER, Row
from composer.evaluation.tables import markdown_tables

NAME = "mixlora_compile"
SHAPE = Shape(
    hidden=512, inner=1376, layers=4, words=4096, experts=8, top_k=2, rank=16, dropout=0.0,
    device="cpu",
)  # fmt: skip
BATCH, TOKENS = 4, 256


def row_of(way: str, model: nn.Module, seconds: float, rounds: int) -> Row:
    """One line: `seconds` went into what runs once, and each round runs all phases."""
    ids = words(SHAPE, BATCH, TOKENS)
    found = [once(model, ids, SHAPE.device) for _ in range(rounds)]
    row: dict[str, Any] = {"way": way, "rounds": rounds, "the first round (s)": round(seconds, 1)}
    for number, phase in enumerate(PHASES):
        each = median(one[number] for one in found) / ids.numel()
        trains = phase != "backward" or not way.startswith(BARE)
        row[f"{phase} (µs/token)"] = round(each * 1e6, 1) if trains else None
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    asked = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    asked.add_argument("--count", type=int, default=7, help="rounds (%(default)s)")
    asked.add_argument("--backend", default="inductor", help="of torch.compile (%(default)s)")
    asked.add_argument("--results", type=Path, default=FOLDER, help="folder of the results files")
    given = asked.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for way in (OURS, BARE):
        model = WAYS[way](SHAPE)
        for compiled in (False, True):
            if compiled:
                cast(Any, model).compile(backend=given.backend)
            begun = time.perf_counter()
            once(model, words(SHAPE, BATCH, TOKENS), SHAPE.device)
            seconds = time.perf_counter() - begun
            rows.append(
                row_of(f"{way}, compiled" if compiled else way, model, seconds, given.count)
            )
            print(rows[-1], flush=True)
    print(markdown_tables(rows))
    write_results(
        NAME,
        rows,
        command=f"python -m benchmarks.{NAME}",
        title="MixLoRA under torch.compile",
        notes=[
            f"A Llama of random weights in float32 with {SHAPE.layers} layers, and {BATCH} rows of "
            f"{TOKENS} words. `model.compile()` after the adapter was attached; how many tokens an "
            "expert gets breaks the graph in each feed-forward, and the parts between are "
            "compiled. The first round holds the compiling, for which longer runs "
            "alone pay.",
        ],
        settings={"rounds": given.count, "backend": given.backend, "threads": 1},
        folder=given.results,
    )


if __name__ == "__main__":
    main()
