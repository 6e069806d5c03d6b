"""CMA-ES: the search of a minimum without gradients, by samples from a normal distribution that
learns its shape (Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass
class CmaEs:
    """The (mu/mu_w, lambda) strategy with the tutorial's constants: `ask` for points, `tell` what
    each is worth.

    mean: (n,), where to begin; afterwards the middle of the distribution.
    step: sigma, its width; it should reach about a third of the way to the minimum.
    """

    mean: Floats
    step: float
    seed: int = 0
    _generation: int = field(default=0, init=False)
    _weights: Floats = field(init=False)
    _path: Floats = field(init=False)
    _cov_path: Floats = field(init=False)
    _covariance: Floats = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.mean)
        self.population = 4 + math.floor(3 * math.log(n))
        half = self.population // 2
        raw = math.log((self.population + 1) / 2) - np.log(np.arange(1, half + 1))
        self._weights = raw / raw.sum()
        mu = 1 / float(self._weights @ self._weights)
        self._mu = mu
        self._c_path = (mu + 2) / (n + mu + 5)
        self._damping = 1 + 2 * max(0.0, math.sqrt((mu - 1) / (n + 1)) - 1) + self._c_path
        self._c_cov_path = (4 + mu / n) / (n + 4 + 2 * mu / n)
        self._c_one = 2 / ((n + 1.3) ** 2 + mu)
        self._c_mu = min(1 - self._c_one, 2 * (mu - 2 + 1 / mu) / ((n + 2) ** 2 + mu))
        self._length = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))  # of a normal vector
        self._path = self._cov_path = np.zeros(n)
        self._covariance = np.eye(n)
        self._rng = np.random.default_rng(self.seed)

    def ask(self) -> list[Floats]:
        """The points of one generation, each (n,)."""
        lengths, axes = _axes(self._covariance)
        spread = axes * lengths
        drawn = self._rng.standard_normal((self.population, len(self.mean)))
        return [self.mean + self.step * (spread @ z) for z in drawn]

    def tell(self, points: Sequence[Floats], worth: Sequence[float]) -> None:
        """Learn from a generation: what `ask` gave, and the value of each, the smaller the better;
        one that is not finite counts as the worst."""
        n = len(self.mean)
        self._generation += 1
        order = np.argsort([value if math.isfinite(value) else math.inf for value in worth])
        best = np.stack(list(points))[order[: len(self._weights)]]
        steps = (best - self.mean) / self.step  # (mu, n)
        middle: Floats = self._weights @ steps
        self.mean = self.mean + self.step * middle

        lengths, axes = _axes(self._covariance)
        whitened: Floats = axes @ ((np.transpose(axes) @ middle) / lengths)
        keep = self._c_path
        self._path = (1 - keep) * self._path + math.sqrt(keep * (2 - keep) * self._mu) * whitened
        reach = math.sqrt(float(self._path @ self._path))
        settled = math.sqrt(1 - (1 - keep) ** (2 * self._generation))
        moving = reach / settled < (1.4 + 2 / (n + 1)) * self._length
        keep = self._c_cov_path
        self._cov_path = (1 - keep) * self._cov_path
        if moving:
            self._cov_path = self._cov_path + math.sqrt(keep * (2 - keep) * self._mu) * middle
        lost = 0.0 if moving else self._c_one * keep * (2 - keep)
        self._covariance = (
            (1 - self._c_one - self._c_mu + lost) * self._covariance
            + self._c_one * np.outer(self._cov_path, self._cov_path)
            + self._c_mu * (self._weights * np.transpose(steps)) @ steps
        )
        self.step *= math.exp(self._c_path / self._damping * (reach / self._length - 1))


def _axes(covariance: Floats) -> tuple[Floats, Floats]:
    """The half axes of the distribution: their lengths, (n,), and directions, the columns."""
    values, axes = cast("tuple[Floats, Floats]", np.linalg.eigh(covariance))
    return cast(Floats, np.sqrt(np.maximum(values, 1e-20))), axes
