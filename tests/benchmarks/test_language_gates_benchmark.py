"""The study of gates over LoRAs of a language model: its tasks are right, a small run writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.language import gates
from benchmarks.language.gates import GATES, PEFT, Answered, row_of
from benchmarks.language.tasks import TASKS, draw


def test_each_task_has_one_right_answer() -> None:
    def words(task: str) -> list[tuple[list[str], list[str]]]:
        some = draw(task, 20, "x")
        return [
            (str(r.prompt).removeprefix(f"{task}: ").removesuffix(" =>").split(), r.answer.split())
            for r in some
        ]

    assert all(answer == asked[::-1] for asked, answer in words("swap"))
    assert all(answer == sorted(asked) for asked, answer in words("sort"))
    assert all(answer == [asked[0]] for asked, answer in words("first"))
    assert all(answer == [asked[-1]] for asked, answer in words("last"))
    assert all(answer[::2] == answer[1::2] == asked for asked, answer in words("double"))
    joined = words("join")
    assert all(answer[::2] == asked and set(answer[1::2]) == {"and"} for asked, answer in joined)
    assert len(TASKS) == 8


def test_training_sees_no_request_of_the_test() -> None:
    test = frozenset(str(r.prompt) for r in draw("swap", 50, "test"))
    assert not test & {str(r.prompt) for r in draw("swap", 200, "train", unlike=test)}


def test_a_row_counts_over_all_tasks_and_names_the_worst() -> None:
    row = row_of(2, "x", Answered({"a": [True, True, True], "b": [True, False, False]}))
    assert row["right"] == pytest.approx(4 / 6, abs=1e-3)
    assert row["worst task"] == "b 0.33"
    assert "entropy" not in row


def test_a_small_run_writes_every_way(tmp_path: Path) -> None:
    gates.main(
        [
            *("--loras", "2", "--results", str(tmp_path)),
            *("--lora-steps", "1", "--gate-steps", "1", "--tries", "2", "--examples", "12"),
            *("--few", "4", "--searched", "2", "--count", "3"),
        ]
    )
    told: Any = json.loads((tmp_path / "language_gates.json").read_text())
    ways = [row["way"] for row in told["rows"]]
    assert ways[:4] == ["its own LoRA", "the bare model", "sum", "NLA"]
    assert ways[4:] == [*PEFT, "LoRAHub", "LoRAHub, factors apart", *GATES]
    for row in told["rows"][-len(GATES) :]:
        assert 0 <= row["entropy"] <= 1
        assert 0.5 <= row["largest share"] <= 1
    assert told["command"].startswith("python -m benchmarks.language.gates --loras 2 ")
    assert " --lora-steps 1 " in told["command"]
