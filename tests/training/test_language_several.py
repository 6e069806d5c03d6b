"""Adapters trained together on one base become what each becomes alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies
from language_training import (
    language,
    losses,
    mixlora,
    plain,
    records,
    training,
    weights,
)

from composer.errors import ComposerError
from composer.training.core import Diverged
from composer.training.language import LanguageTraining, train_adapters
from composer.training.language.trainer import least_padding


def configs(folder: Path, **more: Any) -> list[LanguageTraining]:
    """Three that differ in all that adapters may differ in."""
    narrow = mixlora(experts=2, rank=1)
    dynamic = replace(
        mixlora(), router=replace(mixlora().router, strategy="mixlora-dynamic", top_p=0.6)
    )
    return [
        training(folder, "one", seed=1, **more),
        training(folder, "two", seed=2, adapter=narrow, batch_size=2, accumulation=2, **more),
        training(folder, "three", seed=3, adapter=dynamic, steps=4, learning_rate=3e-4, **more),
    ]


DATA = [records(mark="x"), records(8, mark="yyyyyyyyyy"), records(10)]


@pytest.mark.parametrize("at_once", [None, 2, 1])
def test_each_becomes_what_it_is_alone(tmp_path: Path, at_once: int | None) -> None:
    together = list(
        train_adapters(language(), configs(tmp_path / "together"), records=DATA, at_once=at_once)
    )
    for config, data in zip(configs(tmp_path / "alone"), DATA, strict=True):
        alone = list(train_adapters(language(), [config], records=[data]))
        # other rows and more padding beside it: the same but for rounding
        assert losses(together, config.name) == pytest.approx(losses(alone, config.name), rel=1e-4)
        theirs, its = weights(tmp_path / "together" / config.name), weights(config.output)
        assert theirs.keys() == its.keys()
        for name in its:
            torch.testing.assert_close(theirs[name], its[name], atol=2e-4, rtol=1e-3)


def test_one_that_diverges_leaves_the_others_alone(tmp_path: Path) -> None:
    good, bad = training(tmp_path, "good"), training(tmp_path, "bad", learning_rate=1e30)
    bad = replace(bad, clip_norm=None)
    reports = []
    with pytest.raises(Diverged, match="bad diverged"):
        for report in train_adapters(language(), [good, bad], records=DATA[:2]):
            reports.append(report)
    assert [r.name for r in reports if r.stage == "saved"] == ["good"]
    alone = training(tmp_path / "alone", "good")
    expected = list(train_adapters(language(), [alone], records=DATA[:1]))
    assert losses(reports, "good") == pytest.approx(losses(expected, "good"), rel=1e-4)
    assert all(bool(w.isfinite().all()) for w in weights(bad.output).values())


def test_base_layers_run_once_for_all(tmp_path: Path) -> None:
    base = language()
    rows: list[int] = []
    base.model.model.embed_tokens.register_forward_hook(  # type: ignore[union-attr]
        lambda _, inputs, __: rows.append(inputs[0].shape[0])
    )
    both = [training(tmp_path, "a", steps=2), training(tmp_path, "b", steps=2)]
    list(train_adapters(base, both, records=DATA[:2]))
    assert rows == [6, 6]


def test_trainings_that_cannot_share_are_refused(tmp_path: Path) -> None:
    one, two = training(tmp_path, "a"), training(tmp_path, "b", precision="bfloat16")
    with pytest.raises(ComposerError, match="agree in precision"):
        train_adapters(language(), [one, two], records=DATA[:2])
    with pytest.raises(ComposerError, match="called a"):
        list(train_adapters(language(), [one, one], records=DATA[:2]))
    with pytest.raises(ComposerError, match="one at a time"):
        both = [one, training(tmp_path, "c", adapter=plain())]
        list(train_adapters(language(), both, records=DATA[:2]))
    with pytest.raises(ComposerError, match="at_once"):
        train_adapters(language(), [one], records=DATA[:1], at_once=0)


@settings(deadline=None)
@given(strategies.lists(strategies.integers(1, 30), min_size=1, max_size=7), strategies.data())
def test_no_other_grouping_has_less_padding(lengths: list[int], data: Any) -> None:
    at_once = data.draw(strategies.integers(1, len(lengths)))
    parts = least_padding(lengths, lambda n: n, at_once)
    assert sorted(n for part in parts for n in part) == sorted(lengths)
    assert len(parts) == math.ceil(len(lengths) / at_once)
    assert max(len(part) for part in parts) <= at_once

    def cost(split: list[list[int]]) -> int:
        return sum(len(part) * max(part) for part in split)

    def splits(left: tuple[int, ...], groups: int) -> Any:
        """All ways to part what is left into so many groups of at most `at_once`."""
        if not left:
            if groups == 0:
                yield []
            return
        if groups == 0:
            return
        first, rest = left[0], left[1:]
        for chosen in range(2 ** len(rest)):
            mine = [rest[i] for i in range(len(rest)) if chosen >> i & 1]
            if len(mine) < at_once:
                others = tuple(rest[i] for i in range(len(rest)) if not chosen >> i & 1)
                for more in splits(others, groups - 1):
                    yield [[first, *mine], *more]

    if len(lengths) <= 5:
        assert cost(parts) == min(cost(s) for s in splits(tuple(lengths), len(parts)))
