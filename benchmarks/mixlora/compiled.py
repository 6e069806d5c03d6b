"""What torch.compile saves of MixLoRA's time, and what compiling costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any, cast

import torch
from torch import nn

from benchmarks.mixlora.cost import PHASES, Times, once, ratio, time_all
from benchmarks.mixlora.ways import BARE, OURS, WAYS, Shape, words
from benchmarks.shared.options import plain_parser, publish
from benchmarks.shared.results import Row

NAME = "mixlora.compiled"
SHAPE = Shape(
    hidden=512, inner=1376, layers=4, words=4096, experts=8, top_k=2, rank=16, dropout=0.0,
    device="cpu",
)  # fmt: skip
BATCH, TOKENS = 4, 256
COMPILED = ", compiled"


def rows_of(times: Times, first: dict[str, float]) -> list[Row]:
    """One line for each way: medians over rounds, and ratios within a round to the way's own model
    that is not compiled."""
    tokens = BATCH * TOKENS
    rows: list[Row] = []
    for way, rounds in times.items():
        plain = way.removesuffix(COMPILED)
        row: dict[str, Any] = {"way": way, "rounds": len(rounds)}
        row["the first round (s)"] = round(first[way], 1)
        for number, phase in enumerate(PHASES):
            trains = phase != "backward" or plain != BARE
            each = median(one[number] for one in rounds) / tokens
            beside = ratio(times, way, plain, number) if trains else 0.0
            row[f"{phase} (µs/token)"] = round(each * 1e6, 1) if trains else None
            row[f"{phase}, beside uncompiled (×)"] = round(beside, 2) if trains else None
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    asked = plain_parser(NAME, __doc__)
    asked.add_argument("--count", type=int, default=7, help="rounds (%(default)s)")
    asked.add_argument("--backend", default="inductor", help="of torch.compile (%(default)s)")
    given = asked.parse_args(arguments)
    torch.set_num_threads(1)
    ids = words(SHAPE, BATCH, TOKENS)
    models: dict[str, nn.Module] = {}
    first: dict[str, float] = {}
    for way in (OURS, BARE):
        models[way], models[way + COMPILED] = WAYS[way](SHAPE), WAYS[way](SHAPE)
        cast(Any, models[way + COMPILED]).compile(backend=given.backend)
    for way, model in models.items():
        begun = time.perf_counter()
        once(model, ids, SHAPE.device)
        first[way] = time.perf_counter() - begun
        print(f"{way}: {first[way]:.0f} s", flush=True)
    rows = rows_of(time_all(models, ids, SHAPE.device, given.count), first)
    publish(
        NAME,
        rows,
        arguments,
        title="MixLoRA under torch.compile",
        notes=[
            f"A Llama of random weights in float32 with {SHAPE.layers} layers, and {BATCH} rows of "
            f"{TOKENS} words. `model.compile()` after the adapter was attached. How many tokens an "
            "expert gets depends on the data and breaks the graph in each feed-forward; the parts "
            "between are compiled. Each round runs every way once; ratios are medians of those "
            "within a round, so other work on the machine hardly changes them. The first round "
            "includes compiling.",
        ],
        settings={"rounds": given.count, "backend": given.backend, "threads": 1},
        folder=given.results,
    )


if __name__ == "__main__":
    main()
