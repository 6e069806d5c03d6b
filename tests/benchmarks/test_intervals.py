from __future__ import annotations

import random

import pytest

from benchmarks.shared.intervals import interval_columns, share_columns, wilson


@pytest.mark.parametrize(
    ("successes", "n", "ends"),
    [
        (0, 1, (0.0, 0.793451)),
        (0, 60, (0.0, 0.060172)),
        (1, 7, (0.025680, 0.513128)),
        (33, 60, (0.424919, 0.669063)),
        (499, 500, (0.988759, 0.999647)),
        (9, 9, (0.700855, 1.0)),
    ],
)
def test_wilsons_interval(successes: int, n: int, ends: tuple[float, float]) -> None:
    found = wilson(successes, n)
    assert found.value == successes / n
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-6)


def test_wilson_covers_the_true_share_as_often_as_it_says() -> None:
    rng = random.Random(0)
    found = [wilson(sum(rng.random() < 0.93 for _ in range(100)), 100) for _ in range(1000)]
    assert 0.92 < sum(i.low <= 0.93 <= i.high for i in found) / 1000 < 0.98


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_no_share(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson(successes, n)


def test_columns() -> None:
    assert share_columns("right", [True, True, False, True]) == {
        "right": 0.75,
        "right low": 0.3006,
        "right high": 0.9544,
    }
    assert list(interval_columns("x", wilson(1, 2))) == ["x", "x low", "x high"]
