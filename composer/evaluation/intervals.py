"""How sure a mean is, and how values do against others that they are paired with."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import numpy as np

RESAMPLES = 2000
FEWEST = 10
"""Values, for an interval of their mean: of fewer the bootstrap's is clearly too narrow."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure, and the interval that holds its true value with the confidence asked for."""

    value: float
    low: float
    high: float


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


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How values do against others, pair by pair.

    pairs: how many. clusters: how many of them are independent.
    wins: the share of pairs in which the value is the greater one; equal ones count half.
    difference: the mean of value - other, over clusters of their means.
    interval: its bootstrap interval of 95 %; None of fewer clusters than `FEWEST`.
    """

    pairs: int
    clusters: int
    wins: float
    difference: float
    interval: Interval | None


def paired(values: Sequence[tuple[float, float]], clusters: Sequence[Hashable]) -> Paired:
    """Pairs of a value and another, each of a cluster; those of one cluster depend on each other,
    so that whole clusters are resampled.

    Raises:
        ValueError: there is no pair, or not a cluster for each.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"{len(values)} pairs of {len(clusters)} clusters cannot be compared.")
    by_cluster: dict[Hashable, list[float]] = {}
    for (own, other), cluster in zip(values, clusters, strict=True):
        by_cluster.setdefault(cluster, []).append(own - other)
    means = [fmean(some) for some in by_cluster.values()]
    return Paired(
        pairs=len(values),
        clusters=len(means),
        wins=fmean((own > other) + (own == other) / 2 for own, other in values),
        difference=fmean(means),
        interval=bootstrap_mean(means) if len(means) >= FEWEST else None,
    )
