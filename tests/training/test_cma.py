"""CMA-ES finds minima of functions that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from composer.training.cma import CmaEs, Floats


def minimise(value: object, begin: Floats, step: float, generations: int, seed: int = 0) -> CmaEs:
    strategy = CmaEs(mean=begin, step=step, seed=seed)
    for _ in range(generations):
        points = strategy.ask()
        strategy.tell(points, [float(value(point)) for point in points])  # type: ignore[operator]
    return strategy


@pytest.mark.parametrize("n", [1, 2, 8])
def test_the_middle_of_a_bowl(n: int) -> None:
    found = minimise(lambda x: ((x - 0.7) ** 2).sum(), np.zeros(n), 0.5, 60 + 30 * n)
    np.testing.assert_allclose(found.mean, 0.7, atol=1e-4)
    assert found.step < 1e-3


def test_a_turned_valley_a_thousand_times_longer_than_wide() -> None:
    axes, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))
    scales = 10.0 ** np.linspace(0, 3, 5)

    def value(x: Floats) -> float:
        return float((scales * (axes.T @ (x - 1.0)) ** 2).sum())

    found = minimise(value, np.zeros(5), 0.5, 400)
    np.testing.assert_allclose(found.mean, 1.0, atol=1e-3)


def test_a_bent_valley() -> None:
    def rosenbrock(x: Floats) -> float:
        return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())

    found = minimise(rosenbrock, np.zeros(4), 0.5, 500)
    np.testing.assert_allclose(found.mean, 1.0, atol=1e-2)


def test_the_same_each_time_and_no_shape_or_scale_matters() -> None:
    """It looks at the order of the values alone."""

    def value(x: Floats) -> float:
        return float((x**2).sum())

    one = minimise(value, np.ones(3), 0.5, 20)
    two = minimise(lambda x: 1e6 * math.exp(value(x)), np.ones(3), 0.5, 20)
    np.testing.assert_array_equal(one.mean, two.mean)


def test_values_that_are_not_finite_are_the_worst() -> None:
    def value(x: Floats) -> float:
        return float("nan") if x[0] > 0.9 else float(((x - 0.5) ** 2).sum())

    found = minimise(value, np.zeros(2), 0.5, 100)
    np.testing.assert_allclose(found.mean, 0.5, atol=1e-3)
