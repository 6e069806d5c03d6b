"""The benchmark of LoRA files reads what it writes, and says how exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.experts import files
from benchmarks.shared.results import read_results


def test_a_row_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "KINDS", {"LoHa (PEFT)": files.KINDS["LoHa (PEFT)"]})
    monkeypatch.setattr(files, "NAMINGS", {"ComfyUI": files.NAMINGS["ComfyUI"]})
    files.main(["--results", str(tmp_path)])
    kind, naming = read_results(tmp_path / "experts_files.json").rows
    assert (kind["file"], kind["modules read"], kind["oracle"]) == ("LoHa (PEFT)", "4 of 4", "PEFT")
    assert (naming["file"], naming["modules read"]) == ("ComfyUI", "1 of 1")
    assert kind["exact"] == naming["exact"] == "yes"
