"""Data is read in all its forms, and what is wrong with it is said with file and line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from composer.errors import ComposerError
from composer.language.records import read_records


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return path


def test_all_forms_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path / "all.jsonl",
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Greet.", "input": None, "response": "Hi"},
        {"prompt": "a ", "completion": "b"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"text": "one\u2028two"},
    )
    add, greet, plain, chat, text = read_records(path)
    assert (add.instruction, add.input, add.answer) == ("Add.", "1 1", "2")
    assert (greet.input, greet.answer) == ("", "Hi")
    assert (plain.prompt, plain.answer) == ("a ", "b")
    assert chat.messages == (("user", "q"),)
    assert chat.answer == "a"
    assert (text.prompt, text.answer) == ("", "one\u2028two")
    assert text.origin == "all.jsonl, line 5"


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    written(tmp_path / "b.jsonl", {"text": "second"})
    written(tmp_path / "a.jsonl", {"text": "first"})
    assert [record.answer for record in read_records(tmp_path)] == ["first", "second"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "x"}, 'no answer: add an "output"'),
        ({"prompt": "x"}, 'add a "completion"'),
        ({"prompt": "x", "completion": 3}, '"completion" is 3'),
        ({"prompt": "x", "completion": "  "}, '"completion" is empty'),
        ({"messages": [{"role": "user", "content": "x"}]}, "do not end with an answer"),
        ({"messages": [{"role": "user"}]}, "no role or no content"),
        ({"question": "x"}, "['question'] are no record"),
        (["x"], "no JSON object"),
    ],
)
def test_the_line_is_named(tmp_path: Path, row: Any, said: str) -> None:
    path = written(tmp_path / "bad.jsonl", {"text": "fine"}, row)
    with pytest.raises(ComposerError) as error:
        read_records(path)
    assert "bad.jsonl, line 2" in str(error.value)
    assert said in str(error.value)


def test_no_data_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n \n", "utf-8")
    with pytest.raises(ComposerError, match="nothing to learn"):
        read_records(tmp_path / "empty.jsonl")
    with pytest.raises(ComposerError, match="There is no data at"):
        read_records(tmp_path / "missing.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": ', "utf-8")
    with pytest.raises(ComposerError, match=r"broken\.jsonl, line 2"):
        read_records(tmp_path / "broken.jsonl")


def test_a_folder_of_datasets_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ComposerError, match="neither"):
        read_records(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setattr("composer.language.records.find_spec", lambda name: None)
    with pytest.raises(ComposerError, match="pip install datasets"):
        read_records(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs datasets")
def test_a_folder_of_datasets(tmp_path: Path) -> None:
    datasets: Any = importlib.import_module("datasets")
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    assert [record.answer for record in read_records(tmp_path / "one")] == ["b", "d"]
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows[:1])})
    both.save_to_disk(tmp_path / "splits")
    assert [record.answer for record in read_records(tmp_path / "splits")] == ["b"]
    with pytest.raises(ComposerError, match="no split 'test'"):
        read_records(tmp_path / "splits", split="test")
