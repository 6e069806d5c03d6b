"""What the gates said while a picture was made: unit × step × expert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from composer.mixture import Mixture

Row = Literal["with_prompt", "without"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class GateRecord:
    """The gates' weights of one picture.

    experts, units: names, the units in the order the model runs them.
    with_prompt: (steps, units, experts), of the pass that sees the prompt.
    without: the same of the pass without it; None where there was no guidance.
    """

    experts: tuple[str, ...]
    units: tuple[str, ...]
    with_prompt: Floats
    without: Floats | None

    def shares(self, row: Row = "with_prompt") -> Floats:
        """Weights as shares of each unit, (steps, units, experts), summing to 1."""
        weights = np.abs(self._of(row))
        total = weights.sum(-1, keepdims=True)
        return (weights / np.maximum(total, 1e-8)).astype(np.float32)

    def entropy(self, row: Row = "with_prompt") -> Floats:
        """Of each unit's shares, averaged over the steps, (units,): 1 is even, 0 one expert."""
        share = self.shares(row)
        bits = -(share * np.log(np.maximum(share, 1e-8))).sum(-1)
        return (bits.mean(0) / np.log(max(len(self.experts), 2))).astype(np.float32)

    def _of(self, row: Row) -> Floats:
        found = self.with_prompt if row == "with_prompt" else self.without
        if found is None:
            raise ValueError("this picture was made without guidance")
        return found


@dataclass
class GateListener:
    """Collects the gates' weights step by step, for a batch of pictures of one prompt."""

    mixture: Mixture
    guided: bool
    _steps: list[dict[str, Tensor]] = field(default_factory=list[dict[str, Tensor]])

    def follow(self, steps: Iterable[object]) -> Iterator[object]:
        """Yields what `steps` yields; each item ends one step of the sampling."""
        with self.mixture.listen() as said:
            for item in steps:
                if said:
                    self._steps.append({unit: _mean(weights) for unit, weights in said})
                    said.clear()
                yield item

    def records(self) -> list[GateRecord]:
        """One for each picture of the batch; none if no learned gate has spoken."""
        if not self._steps:
            return []
        units = [name for name in self.mixture.units if name in self._steps[0]]
        whole = np.stack(
            [np.stack([step[unit].numpy() for unit in units], axis=1) for step in self._steps]
        ).astype(np.float32)  # (steps, rows, units, experts)
        rows = whole.shape[1]
        pictures = rows // 2 if self.guided else rows
        return [
            GateRecord(
                experts=self.mixture.names,
                units=tuple(units),
                with_prompt=whole[:, rows - pictures + picture],
                without=whole[:, picture] if self.guided else None,
            )
            for picture in range(pictures)
        ]


def _mean(weights: Tensor) -> Tensor:
    """(rows, experts), on the CPU; where each token has its own weights, their mean."""
    kept = weights.detach().float().cpu()
    return kept.mean(1) if kept.ndim == 3 else kept


def mean_weights(records: Sequence[GateRecord]) -> dict[str, list[float]]:
    """Each unit's weights averaged over pictures and steps, by unit: what an export can keep."""
    whole = np.stack([record.with_prompt for record in records]).mean((0, 1))
    return {unit: whole[i].tolist() for i, unit in enumerate(records[0].units)}
