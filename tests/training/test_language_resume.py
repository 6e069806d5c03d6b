"""A stopped training of an adapter goes on as if it had never stopped, or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_training import (
    STEPS,
    language,
    losses,
    mixlora,
    records,
    run,
    training,
    weights,
)

from composer.errors import ComposerError
from composer.training.language import LanguageProgress, LanguageTraining, train_adapters


def stopped(config: LanguageTraining, after: int, **more: Any) -> list[LanguageProgress]:
    """The reports up to that step."""
    seen: list[LanguageProgress] = []

    def enough() -> bool:
        return len(losses(seen)) >= after

    from composer.training.language import train_adapter

    for report in train_adapter(
        language(), config, **{"records": records(), "cancelled": enough, **more}
    ):
        seen.append(report)
    return seen


def test_several_go_on_together_though_one_was_done(tmp_path: Path) -> None:
    def configs(folder: Path, **more: Any) -> list[LanguageTraining]:
        shared = {"checkpoint_every": 1, **more}
        return [
            training(folder, "short", steps=2, **shared),
            training(folder, "long", steps=STEPS, **shared),
        ]

    data = [records(mark="x"), records(mark="yy")]
    whole = list(train_adapters(language(), configs(tmp_path / "whole"), records=data))
    seen: list[LanguageProgress] = []
    for report in train_adapters(
        language(),
        configs(tmp_path / "parts"),
        records=data,
        cancelled=lambda: len(losses(seen, "long")) == 3,
    ):
        seen.append(report)
    more = list(train_adapters(language(), configs(tmp_path / "parts", resume=True), records=data))
    assert losses(seen, "long") + losses(more, "long") == losses(whole, "long")
    assert losses(more, "short") == [], "it was done"
    for name in ("short", "long"):
        one, two = weights(tmp_path / "whole" / name), weights(tmp_path / "parts" / name)
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert not list((tmp_path / "parts").glob("*.resume"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 1e-4}, "learning_rate"),
        ({"seed": 1}, "seed"),
        ({"adapter": mixlora(rank=3)}, "adapter"),
    ],
)
def test_another_training_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    stopped(training(tmp_path, checkpoint_every=1), 2)
    with pytest.raises(ComposerError, match=f"was trained with {said}"):
        run(training(tmp_path, checkpoint_every=1, resume=True, **change))


def test_other_data_is_refused(tmp_path: Path) -> None:
    stopped(training(tmp_path, checkpoint_every=1), 2)
    again = training(tmp_path, checkpoint_every=1, resume=True)
    with pytest.raises(ComposerError, match="other data"):
        run(again, records=records(mark="z"))
