"""How sure a measured share is, and figures with their intervals as columns of results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from composer.evaluation.intervals import Interval


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share: right for small n and for shares near 0 and 1."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share: give 0 to n successes of at least one.")
    from scipy import stats  # slow to import

    found = cast("Any", stats).binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(value=successes / n, low=float(found.low), high=float(found.high))


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
