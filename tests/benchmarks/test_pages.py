"""The pages of results: written by program, from results files whose benchmarks exist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.questions import QUESTIONS
from benchmarks.shared.results import FOLDER, read_results
from benchmarks.toybox import model_card

FILES = sorted(FOLDER.glob("*.json"))


def test_the_docs_are_what_the_results_files_say() -> None:
    written = {f"results/{path.name}" for path in (tables.DOCS / "results").iterdir()}
    pages = tables.pages()
    assert written | {tables.TITLE, tables.METHODS} == set(pages)
    for name, text in pages.items():
        found = (tables.DOCS / name).read_text(encoding="utf-8")
        assert found == text, f"docs/{name} is out of date: run `python -m benchmarks.tables`"


def test_the_models_card_is_what_its_files_say() -> None:
    written = (model_card.MODEL / "README.md").read_text(encoding="utf-8")
    assert written == model_card.card(), (
        "assets/toybox/README.md is out of date: run `python -m benchmarks.toybox.model_card`"
    )


def test_every_question_is_answered_with_a_small_table() -> None:
    text = tables.pages()[tables.TITLE]
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    there = {path.stem for path in FILES}
    for question in (one for one in QUESTIONS if there.issuperset(one.sources)):
        lines = [line for line in parts[question.title].splitlines() if line.startswith("|")]
        assert 5 <= len(lines) <= 22, question.title


def test_a_question_without_results_is_left_out(tmp_path: Path) -> None:
    path = FOLDER / "toybox_merging.json"
    (tmp_path / path.name).write_bytes(path.read_bytes())
    text = tables.pages(tmp_path)[tables.TITLE]
    assert "## Does merging fail?" in text and "## Is the model right?" not in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_results_file_names_its_benchmark_and_pictures_that_are_there(path: Path) -> None:
    found = read_results(path)
    assert path.stem == found.stem
    assert find_spec(f"benchmarks.{found.name}") is not None
    assert re.match(rf"python -m benchmarks\.{re.escape(found.name)}( |$)", found.command)
    for image in re.findall(r"\]\((images/[^)]+)\)", " ".join(found.notes)):
        assert (tables.DOCS / image).is_file(), image
