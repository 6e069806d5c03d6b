"""Lines of progress on the command line: one function words every kind of report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from composer.commands._watching import figures_of, show
from composer.training.gates.settings import GateProgress
from composer.training.language import LanguageProgress
from composer.training.progress import Progress

STEP: dict[str, Any] = {"stage": "train", "step": 3, "total": 8}


def test_each_kind_of_training_shows_the_figures_that_it_has() -> None:
    lora = Progress(**STEP, smoothed_loss=0.25, learning_rate=1e-4, skipped=2)
    assert figures_of(lora) == "step 3/8  loss 0.2500  lr 1.0e-04  skipped 2"
    gates = GateProgress(**STEP, smoothed_loss=0.5, losses={"loss": 0.5, "ada": 0.1}, entropy=0.9)
    assert figures_of(gates) == "step 3/8  loss 0.500  ada 0.100  entropy 0.90"
    words = LanguageProgress(
        **STEP, name="a", smoothed_loss=1, router_loss=0.01, load=(0.5, 0.5), eval_loss=2
    )
    expected = "step 3/8  loss 1.0000  routers 0.0100  eval 2.0000  load"
    assert figures_of(words) == f"{expected} 0.50 0.50"
    assert figures_of(words, ["ada", "ink"]) == f"{expected} ada 0.50 ink 0.50"
    assert figures_of(SimpleNamespace(stage="measure", step=1, total=2)) == "measuring 1/2"


def test_a_log_gets_a_line_now_and_then_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    for step in range(1, 46):
        report = Progress(stage="train", step=step, total=45, seconds_left=61.0 * (step < 45))
        show(figures_of(report), report)
    lines = ["step 20/45  61 s left", "step 40/45  61 s left", "step 45/45  0.0 s left"]
    assert capsys.readouterr().err.splitlines() == lines
    show("score", SimpleNamespace(step=20, total=40), 30.0)
    show("score", SimpleNamespace(step=40, total=40), None)
    assert capsys.readouterr().err.splitlines() == ["score  30 s left", "score"]
