"""Does MixLoRA lose less than a LoRA when one adapter learns several tasks at once?

The base is the toybox's language model, which has seen none of the tasks. MixLoRA and a LoRA of as
many trained numbers learn each task by itself, and all tasks in one adapter.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.mixlora.tasks import TASKS, draw
from benchmarks.shared.intervals import interval_columns
from benchmarks.shared.options import plain_parser, publish
from benchmarks.shared.results import ROOT, Row
from composer.evaluation.intervals import bootstrap_mean
from composer.language.complete import Asking, complete, with_adapter
from composer.language.load import LanguageModel, load_language_model
from composer.language.mixlora_config import MixLoraConfig
from composer.language.plain_lora import PlainLora, PlainLoraConfig
from composer.language.records import Record
from composer.mixlora import LoraSettings, RouterSettings, attach_mixlora
from composer.training.language import LanguageTraining, train_adapter

NAME = "mixlora.study"
EXPERTS, TOP_K, RANK = 8, 2, 4
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
"""Both methods take the best of these, by the loss of the first seed on data kept apart."""


def mixlora() -> MixLoraConfig:
    """Eight experts of rank 4 in each FFN, two at once, and a LoRA of rank 4 on the attention."""
    lora = LoraSettings(rank=RANK, alpha=2.0 * RANK, dropout=0.0)
    return MixLoraConfig(
        experts=lora, attention=lora, router=RouterSettings(experts=EXPERTS, top_k=TOP_K)
    )


def plain(rank: int) -> PlainLoraConfig:
    """A LoRA on the same modules."""
    return PlainLoraConfig(lora=LoraSettings(rank=rank, alpha=2.0 * rank, dropout=0.0))


def equal_rank(language: LanguageModel) -> tuple[int, int, int]:
    """The rank at which a LoRA has as many trained numbers as MixLoRA, and both counts."""
    with attach_mixlora(language.model, {"count": mixlora()}, seed=0) as attached:
        wanted = sum(p.numel() for _, p in attached.named_parameters("count"))
    one = PlainLora(language.model, "count", plain(1), 0)
    each = sum(p.numel() for _, p in one.named_parameters("count"))
    one.detach()
    rank = max(round(wanted / each), 1)
    return rank, wanted, rank * each


def right(language: LanguageModel, folder: Path, asked: Sequence[Record]) -> float:
    """The share of requests answered exactly, by the likeliest words."""
    asking = Asking(tokens=40)
    with with_adapter(language, folder):
        made: list[str] = []
        for start in range(0, len(asked), 100):
            made += complete(language, list(asked[start : start + 100]), asking)
    pairs = zip(made, asked, strict=True)
    return sum(" ".join(text.split()) == record.answer for text, record in pairs) / len(asked)


class Study:
    """All runs of one study on one base."""

    def __init__(self, language: LanguageModel, given: argparse.Namespace) -> None:
        self.language, self.given = language, given
        self.rank, self.mixlora_size, self.lora_size = equal_rank(language)
        self.tests = {task: draw(task, given.count, "test") for task in TASKS}
        asked = {t: frozenset(r.prompt or "" for r in some) for t, some in self.tests.items()}
        self.data = {t: draw(t, given.examples, "train", unlike=asked[t]) for t in TASKS}
        self.rates: dict[tuple[str, bool], float] = {}

    def train(self, method: str, tasks: Sequence[str], seed: int, rate: float, out: Path) -> float:
        """One adapter; the loss on a share of the data that it does not learn from."""
        config = LanguageTraining(
            output=out,
            adapter=mixlora() if method == "MixLoRA" else plain(self.rank),
            steps=self.given.steps * len(tasks),
            batch_size=self.given.batch,
            packing=True,
            learning_rate=rate,
            schedule="cosine",
            warmup=10,
            eval_share=0.05,
            seed=seed,
        )
        records = [record for task in tasks for record in self.data[task]]
        *_, last = train_adapter(self.language, config, records=records)
        assert last.eval_loss is not None
        return last.eval_loss

    def rate(self, method: str, tasks: Sequence[str], out: Path) -> float:
        """The best rate for this method, for one task (measured on the first) or for several."""
        key = method, len(tasks) > 1
        if key not in self.rates:
            some = tasks if len(tasks) > 1 else tasks[:1]
            losses = {r: self.train(method, some, 100, r, out) for r in LEARNING_RATES}
            self.rates[key] = min(losses, key=lambda r: losses[r])
            print(f"{method}, {len(tasks)} tasks: {losses}", flush=True)
        return self.rates[key]

    def runs(self, folder: Path) -> Iterator[tuple[str, bool, str, float]]:
        """(method, several tasks, task, share right), seed by seed."""
        names = list(TASKS)
        for seed in range(self.given.seeds):
            for method in ("LoRA", "MixLoRA"):
                for tasks in [[task] for task in names] + [names]:
                    rate = self.rate(method, tasks, folder / "rate")
                    out = folder / f"{method}-{'-'.join(tasks)}-{seed}"
                    self.train(method, tasks, seed, rate, out)
                    for task in tasks:
                        share = right(self.language, out, self.tests[task])
                        print(f"seed {seed} {method} {len(tasks)}: {task} {share:.3f}", flush=True)
                        yield method, len(tasks) > 1, task, share


def rows_of(found: Sequence[tuple[str, bool, str, float]]) -> list[Row]:
    """One row for each method and task, and the means over all tasks."""
    rows: list[Row] = []
    for task in (*TASKS, "mean"):
        for method in ("LoRA", "MixLoRA"):
            cells: dict[str, float] = {}
            for several, column in ((False, "alone"), (True, "with the others")):
                some = [
                    s
                    for m, many, t, s in found
                    if m == method and many == several and task in (t, "mean")
                ]
                seeds = len(some) // (len(TASKS) if task == "mean" else 1)
                if task == "mean":  # a seed's mean over the tasks is one value
                    shares = [
                        [s for m, n, t, s in found if (m, n, t) == (method, several, task_)]
                        for task_ in TASKS
                    ]
                    some = [sum(column_) / len(TASKS) for column_ in zip(*shares, strict=True)]
                cells |= interval_columns(column, bootstrap_mean(some))
                cells["seeds"] = seeds
            rows.append({"task": task, "adapter": method, **cells})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Train everything, measure, print and write the results."""
    parser = plain_parser(NAME, __doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "assets/toybox/language")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="for each task")
    parser.add_argument("--batch", type=int, default=8, help="packed rows of a step")
    parser.add_argument("--examples", type=int, default=3000, help="of each task")
    parser.add_argument("--count", type=int, default=200, help="test requests of each task")
    given = parser.parse_args(arguments)
    study = Study(load_language_model(given.model), given)
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(list(study.runs(Path(folder))))
    notes = [
        "The share of requests never seen that are answered exactly; means over seeds. Alone: an "
        "adapter for this task. With the others: one adapter for all tasks, which saw as many "
        "steps of each.",
        f"MixLoRA trains {study.mixlora_size:,} numbers ({EXPERTS} experts, {TOP_K} for each token,"
        f" rank {RANK}), the LoRA {study.lora_size:,} (rank {study.rank}) on the same modules."
        " Each took the best of three learning rates, by the loss on held-out data.",
    ]
    publish(
        NAME,
        rows,
        arguments,
        title="MixLoRA and LoRA: one task, and several",
        notes=notes,
        settings={
            **{name: getattr(given, name) for name in ("seeds", "steps", "batch", "count")},
            **{f"{m} {'several' if s else 'one'} rate": r for (m, s), r in study.rates.items()},
        },
        folder=given.results,
    )


if __name__ == "__main__":
    main()
