"""What the tests of gate training have in common."""

from __future__ import annotations

import pytest

from composer.training.gates import sampling


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samplings of three steps: a few batches go over the end of one."""
    monkeypatch.setattr(sampling, "STEPS", 3)
