from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from benchmarks.shared.intervals import share_columns
from benchmarks.shared.markdown import markdown_table, results_section
from benchmarks.shared.results import read_results, write_results
from composer.errors import ComposerError

ROWS = [
    {"table": "LoRAs", "LoRA": "zibo", "n": 4, **share_columns("right", [True] * 3 + [False])},
    {"table": "LoRAs", "LoRA": "neon|glow", "n": 4, **share_columns("right", [True] * 4)},
    {"table": "Time", "pictures": 1, "time (s)": 0.8123, "time (s) low": 0.7, "time (s) high": 0.9},
    {"table": "Time", "pictures": 4, "time (s)": 12.345, "kept": True, "PSNR (dB)": 30.26},
]


def write(folder: Path) -> Path:
    return write_results(
        "some.figures",
        ROWS,
        command="python -m benchmarks.some.figures --count 4",
        notes=["What it means."],
        settings={"steps": 12, "truth": False},
        folder=folder,
    )


def test_a_file_says_all_it_takes_to_repeat_it(tmp_path: Path) -> None:
    found = read_results(write(tmp_path / "new"))
    assert list(map(dict, found.rows)) == ROWS
    assert found.command == "python -m benchmarks.some.figures --count 4"
    assert found.title == "Figures"
    assert set(found.machine) == {"cpu", "cores", "ram_gb", "gpu", "system"}
    assert {"python", "torch", "diffusers", "transformers", "peft", "composer"} == set(
        found.versions
    )
    assert found.commit and found.date and found.settings["steps"] == 12


def test_a_file_tells_nothing_of_whose_machine_it_is(tmp_path: Path) -> None:
    text = write(tmp_path).read_text()
    assert platform.node() not in text
    assert str(Path.home()) not in text and str(Path(__file__).parents[2]) not in text


def test_each_row_is_one_line(tmp_path: Path) -> None:
    lines = write(tmp_path).read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if line.startswith("  {")] == ROWS


def test_what_is_no_results_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for text in ("{}", "[1]", "{", '{"rows": [], "notes": [], "more": 1}'):
        path.write_text(text)
        with pytest.raises(ComposerError, match=r"other\.json is no results file"):
            read_results(path)


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match="no rows"):
        write_results("some.x", [], command="", folder=tmp_path)
    with pytest.raises(ComposerError, match="not a number"):
        write_results("some.x", [{"a": float("nan")}], command="", folder=tmp_path)
    with pytest.raises(ComposerError, match="cannot name results"):
        write_results("../x", [{"a": 1}], command="", folder=tmp_path)


def test_shares_are_percentages_with_their_interval() -> None:
    assert markdown_table(ROWS[:2]) == (
        "| LoRA | n | right |\n"
        "| --- | ---: | ---: |\n"
        "| zibo | 4 | 75.0 % (30–95) |\n"
        "| neon\\|glow | 4 | 100.0 % (51–100) |"
    )


def test_other_figures_and_missing_ones() -> None:
    assert markdown_table(ROWS[2:]).splitlines()[2:] == [
        "| 1 | 0.812 (0.7–0.9) |  |  |",
        "| 4 | 12.3 | yes | 30.3 |",
    ]


def test_a_section_has_a_table_for_each_name_and_its_origin(tmp_path: Path) -> None:
    text = results_section(read_results(write(tmp_path)))
    assert text.startswith("## Figures\n\n### LoRAs\n\n| LoRA")
    assert "\n\n### Time\n\n" in text
    assert "What it means." in text
    assert "`python -m benchmarks.some.figures --count 4`" in text
    assert "Settings: steps 12, truth no." in text
