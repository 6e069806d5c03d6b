"""The questions of docs/results.md, each answered with rows of the results files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.compos.figures import (
    ALL,
    GAIN,
    LORAS,
    PASSES,
    RIGHT,
    SEVERAL,
    SOURCE,
    seconds,
    size_table,
    whole,
)
from benchmarks.shared.markdown import cell, plain
from benchmarks.shared.options import FAMILIES
from benchmarks.shared.results import Results, Row, Value, file_stem, in_table, number
from benchmarks.shared.ways import BARE_TITLE
from composer.fusions import Gates, Sum


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The table that answers a question, and paragraphs above it."""

    words: tuple[str, ...]
    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, and what answers it from the results files `sources`, given in their order by
    their names without the suffix."""

    title: str
    sources: tuple[str, ...]
    answer: Callable[..., Answer]


def is_model_right(model: Results, alone: Results) -> Answer:
    """Pictures of the model, of each LoRA alone, and the oracle itself."""
    rows: list[Row] = []
    for row in in_table(model.rows, "Everything right"):
        if row["wording"] == "both":
            rows.append(
                {"pictures show": row["pictures show"], "n": row["n"], **_share(row, "right")}
                | {"asked for": row["asked for"]}
            )
    (every,) = (row for row in alone.rows if row["LoRA"] == "all")
    for column, what in (
        ("element right", "what one LoRA teaches"),
        ("rest right", "all else beside it"),
    ):
        rows.append({"pictures show": what, "n": every["n"], **_share(every, column, "right")})
    for row in in_table(model.rows, "The oracle on what it has not seen"):
        if row["asked for"]:
            what = f"the oracle's answers, of {row['pictures']}"
            rows.append(
                {"pictures show": what, "n": row["n"], **_share(row, "right")}
                | {"asked for": row["asked for"]}
            )
    asked = [row for row in rows if row.get("asked for")]
    met = sum(number(row, "right") * 100 >= _asked(str(row["asked for"])) for row in asked)
    words = f"Of the {len(asked)} shares that have to reach a bound, {met} do."
    return Answer(words=(words,), rows=rows)


def does_merging_fail(merging: Results) -> Answer:
    """The plain sum of two LoRAs, by the kinds of the two."""
    rows: list[Row] = []
    for kinds in dict.fromkeys(str(row["kinds"]) for row in merging.rows):
        by_weight = {row["weights"]: row for row in merging.rows if row["kinds"] == kinds}
        control = by_weight.pop("each alone at 1")
        product = str(control["both right"]).removesuffix(" (product)")
        line: dict[str, Value] = {"kinds": kinds, "product of each alone": product}
        for weight, row in by_weight.items():
            line |= _share(row, "both right", f"sum, weights {weight}")
        rows.append(line | {"n": next(iter(by_weight.values()))["n"]})
    first = next(column for column in rows[0] if column.startswith("sum"))
    rows.sort(key=lambda row: number(row, first))
    worst, best = rows[0], rows[-1]
    words = (
        "The share of pictures in which both elements are right, each where the prompt puts it. It "
        f"depends on what the two LoRAs change: the {first}, keeps both in {cell(best, first)} of "
        f"the pictures for {best['kinds']} and in {cell(worst, first)} for {worst['kinds']}. Did "
        "two LoRAs not disturb each other, both would be right as often as the product says."
    )
    return Answer(words=(words,), rows=rows)


def do_gates_win(merges: Results, learned: Results) -> Answer:
    """Every named element right, by the kinds of the LoRAs and the way of fusing."""
    gain = "gain over the tuned sum (points)"
    ways = {
        "sum, weights 1": "sum, weights 1",
        "sum, weights tuned by grid": "tuned sum",
        "trigger regions": "trigger regions",
        "learned gates": "learned gates",
    }
    rows: list[Row] = []
    for kinds in dict.fromkeys(str(row["table"]) for row in merges.rows):
        found = {
            row["fusion"]: row
            for row in (*in_table(merges.rows, kinds), *in_table(learned.rows, kinds))
        }
        line: dict[str, Value] = {"LoRAs": kinds}
        for way, short in ways.items():
            line |= _share(found[way], "all named right", short)
        line |= {
            column: found["learned gates"][column]
            for column in (gain, f"{gain} low", f"{gain} high")
        }
        rows.append(line | {"n": found["learned gates"]["n"]})
    better = [row for row in rows if number(row, f"{gain} low") > 0]
    worse = [row for row in rows if number(row, f"{gain} high") < 0]
    count = len(rows) - len(better) - len(worse)
    words = (
        "The share of pictures in which every element that the prompt names is right. Against the "
        f"sum with its best weights, learned gates win for {_listed(better)}, and lose for "
        f"{_listed(worse)}; for the other {count} kinds the interval of the gain holds 0."
    )
    return Answer(words=(words,), rows=sorted(rows, key=lambda row: -number(row, gain)))


def which_to_use(taught: Results, wild: Results) -> Answer:
    """The best ways on sets of LoRAs, by their number: in one pass, and at any cost."""
    rows: list[Row] = []
    words: list[str] = []
    for results, family in ((taught, "taught well"), (wild, "of few pictures")):
        advised: dict[str, list[str]] = {}
        more: list[tuple[float, str]] = []
        for loras in LORAS:
            ways = [r for r in whole(results.rows, size_table(loras)) if PASSES in r]
            ways = [row for row in ways if row["fusion"] != BARE_TITLE]
            plain = next((row for row in ways if row["fusion"] == Sum.title), None)
            if plain is None:
                continue
            quick = _best(row for row in ways if number(row, PASSES) <= SEVERAL)
            best = _best(ways)
            rows.append(
                {
                    "LoRAs": f"{loras}, {family}",
                    **_share(plain, RIGHT, Sum.title.lower()),
                    "best in one pass": quick["fusion"],
                    **_share(quick, RIGHT, "in one pass"),
                    "best of all": best["fusion"],
                    **_share(best, RIGHT, "of all"),
                    PASSES: best[PASSES],
                }
            )
            surely = number(quick, f"{GAIN} low") > 0
            advised.setdefault(str((quick if surely else plain)["fusion"]), []).append(str(loras))
            points = 100 * (number(best, RIGHT) - number(quick, RIGHT))
            more.append((points, f"{best['fusion']} for {loras}"))
        if not advised:
            continue
        choice = "; ".join(f"{way} for {_and(sizes)}" for way, sizes in advised.items())
        points, way = max(more)
        beyond = (
            f"more passes make up to {points:.0f} points more of the pictures right ({way})"
            if points > 0
            else "no way with more passes is better"
        )
        words.append(f"With LoRAs {family}, in one pass: {choice}; {beyond}.")
    gated = [r for r in in_table(taught.rows, ALL) if r["fusion"] == Gates.title and GAIN in r]
    words += [
        f"{row['sets']} of the sets have gates that were trained for them: with these, "
        f"{cell(row, RIGHT)} of the pictures are right, a gain over the weighted sum of "
        f"{cell(row, GAIN)} points."
        for row in gated
    ]
    words.append(
        "Right are pictures in which every named element is. A way is advised instead of the "
        "weighted sum only where the interval of its gain lies above 0."
    )
    return Answer(words=tuple(words), rows=rows)


def what_each_part_brings(ablations: Results) -> Answer:
    """The recommended gate with one thing changed in each row."""
    rows: list[Row] = []
    table = next(str(row["table"]) for row in ablations.rows)
    for row in in_table(ablations.rows, table):
        shares = _share(row, "all named right") | _share(row, "whole picture right")
        rows.append({"one thing changed": row["variant"], **shares, "n": row["n"]})
    words = (
        "Each row but the first two is one training that differs from the recommended one in one "
        "thing. Intervals are of the pictures; another training differs by some points again. What "
        "brought nothing was taken out: [tried.md](tried.md)."
    )
    return Answer(words=(words,), rows=rows)


def what_it_costs(
    speed: Results, page: Results, cost: Results, training: Results, mixlora: Results
) -> Answer:
    """Times of a picture, of gates beside other ways, and of training."""
    rows: list[Row] = []

    def add(what: str, figure: str, asked: Value = None) -> None:
        rows.append({"what": what, "figure": figure, "asked for": asked})

    for row in page.rows:
        if not str(row["moment"]).startswith("model ready"):
            add(str(row["moment"]), _seconds(row, "time (s)"))
    for row in in_table(speed.rows, "Time of a picture"):
        if row["pictures at once"] == 1 and row["LoRAs"] in (0, 2):
            loras = f"with {row['LoRAs']} LoRAs" if row["LoRAs"] else "without LoRAs"
            add(
                f"one picture of {speed.settings['steps']} steps, {loras}",
                _seconds(row, "median (s)"),
            )
    for row in cost.rows:
        if (row["experts"], row["way"]) == (3, "gated"):
            for other, asked in (("set_adapters", "≤ 1"), ("fused", "≤ 1.1")):
                what = f"a step with 3 gated LoRAs, beside {other}. {row['table']}"
                add(what, f"{cell(row, f'beside {other} (×)')} ×", asked)
    for row in training.rows:
        what = f"training gates of {row['LoRAs']} in {row['precision']}"
        add(what, _seconds(row, "all (s)"), row["asked for"])
    for row in mixlora.rows:
        if str(row.get("figure", "")).startswith("times LoRA's"):
            phase = str(row["figure"]).rpartition(" ")[2]
            what = f"MixLoRA beside a LoRA of as many parameters, {phase}"
            add(what, f"{row['here']} ×", row["asked"])
    words = (
        "Seconds, and how many times as long as something else; the machine is on each page. Fused "
        "is the LoRAs' sum in the model's weights, set_adapters that of diffusers and PEFT."
    )
    return Answer(words=(words,), rows=rows)


def _share(row: Row, column: str, name: str = "") -> dict[str, Value]:
    """A column with the ends of its interval, under another name."""
    return {f"{name or column}{end}": row[f"{column}{end}"] for end in ("", " low", " high")}


def _seconds(row: Row, column: str) -> str:
    return f"{plain(row[column])} s"


def _asked(words: str) -> float:
    """The percentage of "≥ 95 %"."""
    return float(re.sub(r"[^0-9.]", "", words))


def _best(ways: Iterable[Row]) -> Row:
    """The way of which most pictures are right; of equals the fastest."""
    return max(ways, key=lambda row: (number(row, RIGHT), -seconds(row)))


def _listed(rows: Iterable[Row]) -> str:
    return _and([str(row["LoRAs"]).lower() for row in rows] or ["none"])


def _and(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


WHICH = Question(
    title="Which should I use?",
    sources=tuple(file_stem(SOURCE, family) for family in FAMILIES),
    answer=which_to_use,
)
QUESTIONS = (
    Question(
        title="Is the model right?",
        sources=("toybox_model", "toybox_lora_alone"),
        answer=is_model_right,
    ),
    Question(title="Does merging fail?", sources=("toybox_merging",), answer=does_merging_fail),
    Question(
        title="Do gates win, kind by kind?",
        sources=("gates_merges", "gates_learned"),
        answer=do_gates_win,
    ),
    WHICH,
    Question(
        title="What does each part bring?",
        sources=("gates_ablations",),
        answer=what_each_part_brings,
    ),
    Question(
        title="What does it cost?",
        sources=(
            "toybox_speed",
            "toybox_page",
            "gates_cost",
            "gates_training_time",
            "mixlora_cost",
        ),
        answer=what_it_costs,
    ),
)
