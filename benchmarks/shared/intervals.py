"""How sure a measured figure is: intervals of confidence for shares and for means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """Wilson's score interval of a share: right for small n and for shares near 0 and 1."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share: give 0 to n successes of at least one.")
    from scipy import stats  # slow to import

    found = cast("Any", stats).binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(value=successes / n, low=float(found.low), high=float(found.high))


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
