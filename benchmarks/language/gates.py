"""Do gates over LoRAs of a language model keep what each LoRA can do?

On the toybox's language model, one LoRA learns each of eight tasks. Of 2, 4 and all 8 of them
MoLE's gates are trained on a few requests of each task; beside them stand the sum, NLA, PEFT's
merges and LoRAHub, and each LoRA alone on the task it was made for.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from benchmarks.language.lorahub import lorahub
from benchmarks.language.merges import PeftWay, merge_factors, merged_by_peft
from benchmarks.language.tasks import TASKS, draw
from benchmarks.shared.intervals import share_columns
from benchmarks.shared.options import plain_parser, publish
from benchmarks.shared.results import ROOT, Row
from composer.fusions import Normalised
from composer.language.batches import collate
from composer.language.complete import Asking, complete, with_adapter, with_gates
from composer.language.gated import attach_loras, look, sight_of
from composer.language.gates_config import LoraGatesConfig
from composer.language.load import LanguageModel, load_language_model
from composer.language.parts import read_adapters
from composer.language.plain_lora import PlainLoraConfig
from composer.language.records import Record
from composer.language.samples import encode, window_of
from composer.mixlora import LoraSettings
from composer.mixture import GateSettings, Mixture
from composer.training.gates.losses import entropy, shares
from composer.training.language import LanguageTraining, train_adapter

NAME = "language.gates"
COUNTS = (2, 4, 8)
RANK, LEARNING_RATE = 16, 5e-3
GATES = {
    "MoLE": (GateSettings(), 0.5),
    "MoLE, no balance loss": (GateSettings(), 0.0),
}
"""By name the gates and alpha; all of them in each layer of the model."""
PEFT: dict[str, tuple[PeftWay, bool, float | None]] = {
    "PEFT linear": ("linear", True, None),
    "PEFT ties": ("ties", False, 0.5),
    "PEFT dare_ties": ("dare_ties", False, 0.5),
}
"""By name: the way, whether the weights are 1/N (else 1 each), the density."""


@dataclass(frozen=True)
class Answered:
    """By task, whether each request was answered exactly; and the figures of a way's gates."""

    right: Mapping[str, list[bool]]
    entropy: float | None = None
    largest: float | None = None
    own: float | None = None


class Study:
    """All ways over the first so many LoRAs."""

    def __init__(self, language: LanguageModel, given: argparse.Namespace, folder: Path) -> None:
        self.language, self.given, self.folder = language, given, folder
        self.names = list(TASKS)[: max(given.loras)]
        self.tests = {task: draw(task, given.count, "test") for task in self.names}
        asked = {t: frozenset(r.prompt or "" for r in some) for t, some in self.tests.items()}
        self.data = {t: draw(t, given.examples, "train", unlike=asked[t]) for t in self.names}
        self.few = {t: draw(t, given.few, "few", unlike=asked[t]) for t in self.names}
        self.loras: dict[str, Path] = {}

    def train_loras(self) -> None:
        """One for each task, each from a seed of its own, as LoRAs come from many hands."""
        for seed, task in enumerate(self.names):
            lora = LoraSettings(rank=RANK, alpha=2.0 * RANK, dropout=0.0)
            config = LanguageTraining(
                output=self.folder / task,
                adapter=PlainLoraConfig(lora=lora),
                steps=self.given.lora_steps,
                batch_size=6,
                packing=True,
                learning_rate=LEARNING_RATE,
                schedule="cosine",
                warmup=10,
                seed=seed,
            )
            *_, last = train_adapter(self.language, config, records=self.data[task])
            print(f"LoRA {task}: loss {last.smoothed_loss:.3f}", flush=True)
            self.loras[task] = config.output

    def ways(self, names: Sequence[str]) -> Iterator[tuple[str, Answered]]:
        """Every way on the tasks of these LoRAs."""
        folders = {name: self.loras[name] for name in names}
        alone = {name: self.ask({name: self.tests[name]}, self.adapter(name)) for name in names}
        yield "its own LoRA", Answered({n: a.right[n] for n, a in alone.items()})
        yield "the bare model", self.ask(self.of(names), nullcontext)
        ones = dict.fromkeys(names, 1.0)
        yield "sum", self.ask(self.of(names), lambda: self.constant(folders, ones))
        even = {n: float(w) for n, w in Normalised().weigh(ones).items() if isinstance(w, float)}
        yield "NLA", self.ask(self.of(names), lambda: self.constant(folders, even))
        for title, (way, divided, density) in PEFT.items():
            weights = even if divided else ones
            yield (
                title,
                self.ask(
                    self.of(names),
                    lambda way=way, weights=weights, density=density: merged_by_peft(
                        self.language, folders, weights, way, density=density
                    ),
                ),
            )
        yield from self.searched(names, folders)
        for title, (gate, balance) in GATES.items():
            yield title, self.gated(names, folders, gate, balance)

    def searched(
        self, names: Sequence[str], folders: Mapping[str, Path]
    ) -> Iterator[tuple[str, Answered]]:
        """LoRAHub, by the sum of the changes and as published."""
        experts = read_adapters(folders, self.language.model, self.language.name)
        some = [record for name in names for record in self.few[name][: self.given.searched]]
        found = lorahub(self.language, experts, some, tries=self.given.tries)
        print({name: round(w, 2) for name, w in found.weights.items()}, flush=True)
        yield "LoRAHub", self.ask(self.of(names), lambda: self.constant(folders, found.weights))
        apart = lorahub(self.language, experts, some, tries=self.given.tries, adding="factors")
        merged = merge_factors(experts, apart.weights)
        yield (
            "LoRAHub, factors apart",
            self.ask(self.of(names), lambda: attach_loras(self.language.model, [merged])),
        )

    def gated(
        self, names: Sequence[str], folders: Mapping[str, Path], gate: GateSettings, balance: float
    ) -> Answered:
        """Gates of these settings, trained on a few requests of each task."""
        config = LanguageTraining(
            output=self.folder / "gates.safetensors",
            adapter=LoraGatesConfig(
                loras=tuple(map(str, folders.values())), gate=gate, balance=balance
            ),
            steps=self.given.gate_steps,
            batch_size=12,
            learning_rate=2e-2,
            schedule="cosine",
        )
        records = [record for name in names for record in self.few[name]]
        *_, last = train_adapter(self.language, config, records=records)
        print(f"gates {balance}: loss {last.smoothed_loss:.3f}", flush=True)
        with with_gates(self.language, config.output, list(folders.values())) as mixture:
            answered = self.ask(self.of(names), lambda: nullcontext(mixture), gates=mixture)
            return Answered(answered.right, *self.measured(mixture, names))

    @torch.no_grad()
    def measured(self, mixture: Mixture, names: Sequence[str]) -> tuple[float, float, float]:
        """Of the gates on the tests' requests: the mean entropy of their shares, the largest mean
        share of one LoRA over all tasks, and the mean share of the LoRA made for the task."""
        model, tokenizer = self.language.model, self.language.tokenizer
        by_task: list[torch.Tensor] = []
        spread: list[float] = []
        for name in names:
            samples = encode(self.tests[name][:50], tokenizer, window_of(model, tokenizer)).samples
            batch = collate([[sample] for sample in samples], self.language.pad)
            look(mixture, sight_of(batch.request, encoder=False))
            with mixture.record_weights() as recorded:
                model(**batch.inputs("cpu"))
            by_task.append(torch.stack([shares(w).mean(0) for _, w in recorded]).mean(0))
            spread.append(entropy(recorded))
        mixture.look_at({})
        table = torch.stack(by_task)  # (tasks, LoRAs), both in the order of the names
        order = [mixture.names.index(name) for name in names]
        own = float(table[:, order].diagonal().mean())
        return mean(spread), float(table.mean(0).max()), own

    def of(self, names: Sequence[str]) -> dict[str, list[Record]]:
        return {name: self.tests[name] for name in names}

    def adapter(self, name: str) -> Callable[[], object]:
        return lambda: with_adapter(self.language, self.loras[name])

    @contextmanager
    def constant(
        self, folders: Mapping[str, Path], weights: Mapping[str, float]
    ) -> Generator[None, None, None]:
        """The exact weighted sum."""
        experts = read_adapters(folders, self.language.model, self.language.name)
        with attach_loras(self.language.model, experts) as mixture:
            mixture.set_weights(weights)
            yield

    def ask(
        self,
        tests: Mapping[str, list[Record]],
        attached: Callable[[], object],
        gates: Mixture | None = None,
    ) -> Answered:
        """Which requests are answered exactly, by the likeliest words."""
        right: dict[str, list[bool]] = {}
        with attached():  # type: ignore[attr-defined]
            for task, asked in tests.items():
                texts = complete(self.language, asked, Asking(tokens=24), gates=gates)
                pairs = zip(texts, asked, strict=True)
                right[task] = [" ".join(text.split()) == record.answer for text, record in pairs]
        return Answered(right)


def row_of(count: int, way: str, answered: Answered) -> Row:
    """One row: the share right over all tasks, and the worst task's."""
    every = [right for answers in answered.right.values() for right in answers]
    worst = min(answered.right, key=lambda task: mean(answered.right[task]))
    cells: Row = {"LoRAs": count, "way": way, **share_columns("right", every)}
    cells |= {"worst task": f"{worst} {mean(answered.right[worst]):.2f}"}
    if answered.entropy is not None and answered.largest is not None and answered.own is not None:
        cells |= {
            "entropy": round(answered.entropy, 3),
            "largest share": round(answered.largest, 3),
            "share of its own": round(answered.own, 3),
        }
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Train everything, measure, print and write the results."""
    parser = plain_parser(NAME, __doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "assets/toybox/language")
    parser.add_argument("--loras", type=int, nargs="+", default=list(COUNTS), help="how many")
    parser.add_argument("--lora-steps", type=int, default=100)
    parser.add_argument("--gate-steps", type=int, default=100)
    parser.add_argument("--tries", type=int, default=40, help="of LoRAHub")
    parser.add_argument("--examples", type=int, default=2000, help="of each task, for its LoRA")
    parser.add_argument("--few", type=int, default=100, help="of each task, for gates")
    parser.add_argument("--searched", type=int, default=16, help="of these for LoRAHub")
    parser.add_argument("--count", type=int, default=100, help="test requests of each task")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        study = Study(load_language_model(given.model), given, Path(folder))
        study.train_loras()
        for count in given.loras:
            for way, answered in study.ways(study.names[:count]):
                rows.append(row_of(count, way, answered))
                print(rows[-1], flush=True)
    settings = {k: v for k, v in vars(given).items() if k not in ("model", "results", "loras")}
    publish(
        NAME,
        rows,
        arguments,
        title="LoRAs of a language model: gates, merges and LoRAHub",
        notes=[
            "The share of requests never seen that are answered exactly, over the tasks of all "
            f"LoRAs that are fused ({', '.join(study.names)}: the first so many). "
            "Its own LoRA: each task with the LoRA trained for it, the most that a way can keep.",
            "Sum: all weights 1. NLA and PEFT linear: 1/N each; PEFT ties and dare_ties: 1 "
            "each, density 0.5. These weights, and LoRAHub's, are the same for every request, "
            "while gates depend on it: most of their gain here comes from telling the tasks "
            "apart. LoRAHub was designed for one new task, and has to find one set of weights for "
            "all.",
            "Gates: one in each of the model's layers, on the mean of the request. Entropy of "
            "their shares over the LoRAs (1: even, 0: one alone), the largest mean share that one "
            "LoRA has over all tasks (1/N: none dominates), and the mean share of the LoRA made "
            "for the task. One training of each.",
        ],
        settings=settings,
        folder=given.results,
    )


if __name__ == "__main__":
    main()
