"""Means with their intervals, and values beside others that they are paired with."""

from __future__ import annotations

import random

import numpy as np
import pytest

from composer.evaluation.intervals import FEWEST, bootstrap_mean, paired


def test_bootstrap_holds_the_mean_and_narrows() -> None:
    rng = random.Random(1)
    few, many = [[rng.gauss(5, 2) for _ in range(n)] for n in (20, 500)]
    wide, narrow = bootstrap_mean(few), bootstrap_mean(many)
    assert wide.low < wide.value < wide.high
    assert narrow.low < 5 < narrow.high
    # the normal theory's width, ±1.96 σ/√n
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * 2 / 500**0.5, rel=0.15)
    assert narrow.high - narrow.low < wide.high - wide.low
    assert bootstrap_mean(few) == wide


def test_bootstrap_of_values_all_alike_is_the_value() -> None:
    assert bootstrap_mean([2.0, 2.0]).low == bootstrap_mean([2.0]).high == 2.0
    with pytest.raises(ValueError, match="measure at least one"):
        bootstrap_mean([])


def test_wins_count_ties_half_and_differences_are_of_pairs() -> None:
    pairs = [(2.0, 1.0), (1.0, 1.0), (0.5, 1.0), (4.0, 1.0)]
    found = paired(pairs, range(4))
    assert (found.pairs, found.clusters, found.wins) == (4, 4, 2.5 / 4)
    assert found.difference == pytest.approx((1 + 0 - 0.5 + 3) / 4)
    assert found.interval is None  # too few
    with pytest.raises(ValueError, match="0 pairs"):
        paired([], [])
    with pytest.raises(ValueError, match="of 1 clusters"):
        paired(pairs, [1])


def test_the_interval_is_of_differences_and_of_whole_clusters() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=FEWEST)  # that both of a pair share
    gains = 0.3 + 0.1 * rng.normal(size=FEWEST)
    pairs = [(float(n + g), float(n)) for n, g in zip(noise, gains, strict=True)]
    one = paired(pairs, range(FEWEST))
    assert one.interval is not None and one.interval.low > 0  # for all the noise
    assert one.difference == pytest.approx(float(gains.mean()))
    assert one.interval == bootstrap_mean([a - b for a, b in pairs])
    # the same pairs four times over are no more evidence
    often = paired(pairs * 4, [*range(FEWEST)] * 4)
    assert (often.pairs, often.clusters) == (4 * FEWEST, FEWEST)
    assert often.interval is not None
    assert (often.interval.low, often.interval.high) == pytest.approx(
        (one.interval.low, one.interval.high)
    )
    assert paired(pairs[1:], range(FEWEST - 1)).interval is None


def test_the_interval_of_the_fewest_holds_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    made = [bootstrap_mean(rng.normal(size=FEWEST).tolist()) for _ in range(100)]
    assert sum(one.low <= 0 <= one.high for one in made) >= 84
