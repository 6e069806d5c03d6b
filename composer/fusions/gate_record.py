"""The gates' weights while a picture was made: unit × step × expert."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from composer.errors import ComposerError
from composer.mixture import Mixture

Row = Literal["with_prompt", "without"]
Floats = npt.NDArray[np.float32]
Item = TypeVar("Item")
MAX_BYTES = 256 * 2**20  # unpacked
_UNREADABLE = (AttributeError, EOFError, KeyError, MemoryError, OSError, TypeError, ValueError)


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

    def to_bytes(self) -> bytes:
        """As an NPZ file: text and numbers, nothing that could run."""
        arrays: dict[str, Any] = {
            "experts": np.array(self.experts, dtype=np.str_),
            "units": np.array(self.units, dtype=np.str_),
            "with_prompt": self.with_prompt,
        }
        if self.without is not None:
            arrays["without"] = self.without
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> GateRecord:
        """What `to_bytes` wrote.

        Raises:
            ComposerError: it is damaged, or something else.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                if sum(entry.file_size for entry in packed.infolist()) > MAX_BYTES:
                    raise ValueError("it is too large unpacked")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                experts, units = (tuple(map(str, arrays[name])) for name in ("experts", "units"))
                rows = {
                    name: np.asarray(arrays[name], dtype=np.float32)
                    for name in ("with_prompt", "without")
                    if name in arrays
                }
        except (*_UNREADABLE, zipfile.BadZipFile, zlib.error) as error:
            raise ComposerError(f"The gate map is damaged ({error}). Make it again.") from None
        for values in rows.values():
            sound = values.ndim == 3 and values.shape[1:] == (len(units), len(experts))
            if not sound or not values.size or not bool(np.isfinite(values).all()):
                raise ComposerError("The gate map is damaged: its numbers do not fit its names.")
        if "with_prompt" not in rows:
            raise ComposerError("The gate map is damaged: it has no numbers.")
        without = rows.get("without")
        return cls(experts=experts, units=units, with_prompt=rows["with_prompt"], without=without)

    def _of(self, row: Row) -> Floats:
        found = self.with_prompt if row == "with_prompt" else self.without
        if found is None:
            raise ValueError("this picture was made without guidance")
        return found


@dataclass
class GateRecorder:
    """Collects the gates' weights step by step, for a batch of pictures of one prompt.

    Only the part that is sampled is recorded: a text encoder's gates are asked once, before any
    step.
    """

    mixture: Mixture
    guided: bool
    _steps: list[dict[str, Tensor]] = field(default_factory=list[dict[str, Tensor]])

    def follow(self, steps: Iterable[Item]) -> Generator[Item, None, None]:
        """Yields what `steps` yields; each item ends one step of the sampling.

        Close it where the sampling may be left half-way, or the mixture records on and on.
        """
        units = self.mixture.units
        with self.mixture.record_weights() as given:
            for item in steps:
                means = {unit: _mean(weights) for unit, weights in given if units[unit].timed}
                given.clear()
                if means:
                    self._steps.append(means)
                yield item

    def records(self) -> list[GateRecord]:
        """One for each picture of the batch; none if no gate was asked."""
        if not self._steps:
            return []
        asked = {unit: weights for step in self._steps for unit, weights in step.items()}
        units = [name for name in self.mixture.units if name in asked]
        # A unit in which all experts are switched off for a while is not asked then.
        zeros = {unit: weights.new_zeros(weights.shape) for unit, weights in asked.items()}
        whole = np.stack(
            [
                np.stack([step.get(unit, zeros[unit]).numpy() for unit in units], axis=1)
                for step in self._steps
            ]
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

    def take(self) -> list[GateRecord]:
        """The records of the batch that is over; the next one begins."""
        taken = self.records()
        self._steps.clear()
        return taken


def _mean(weights: Tensor) -> Tensor:
    """(rows, experts), on the CPU; where each token has its own weights, their mean."""
    kept = weights.detach().float().cpu()
    return kept.mean(1) if kept.ndim == 3 else kept
