"""How sure a measured figure is: intervals of confidence for shares and for means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, cast

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure, and the interval that holds its true value with the confidence asked for."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share: right for small n and for shares near 0 and 1.

    With p = successes / n and z the normal quantile of the confidence, its ends are
    (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n)   (Wilson 1927).
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share: give 0 to n successes of at least one.")
    p = successes / n
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = p + z * z / (2 * n)
    reach = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    # at p = 0 and p = 1 the end is p exactly, which rounding misses
    low = 0.0 if successes == 0 else (middle - reach) / scale
    high = 1.0 if successes == n else (middle + reach) / scale
    return Interval(value=p, low=low, high=high)


def bootstrap_mean(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean with its bootstrap interval (bias-corrected and accelerated), the same each time.

    `values` are independent of each other. A single value, or values all alike, say nothing of
    their spread: the interval is then the value itself.
    """
    if not values:
        raise ValueError("there is no mean of no values: measure at least one.")
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if bool((data == data[0]).all()):
        return Interval(value=mean, low=mean, high=mean)
    from scipy import stats  # slow to import

    bootstrap = cast("Any", stats).bootstrap  # its types are not known to the checker
    found = bootstrap(
        (data,), np.mean, n_resamples=RESAMPLES, confidence_level=confidence, rng=seed
    ).confidence_interval
    return Interval(value=mean, low=float(found.low), high=float(found.high))


def share_columns(name: str, answers: Sequence[bool]) -> dict[str, float]:
    """The columns of a share in a row of results: its value and the ends of its interval.

    `markdown_table` shows the three as one cell.
    """
    found = wilson(sum(answers), len(answers))
    return interval_columns(name, found)


def interval_columns(name: str, found: Interval) -> dict[str, float]:
    """The columns of a figure with its interval, rounded to what a reader can use."""
    columns = {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
    return {key: round(value, 4) for key, value in columns.items()}
