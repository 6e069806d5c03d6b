"""The cell that says which adapter each row of a batch belongs to, and where routers report.

As `Routing` is to the sites of a unit, so is this to the hosts and adapted projections of a model:
written once by whoever forms the batch, read by all of them, also when gradient checkpointing runs
a layer again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from composer.errors import ComposerError

Masks = Tensor | Mapping[str, Tensor]
"""Which tokens count, (batch, tokens), nonzero where they do; or one for each part of the model, by
the start of its hosts' paths: {"encoder": ..., "decoder": ...}."""


@dataclass(frozen=True, kw_only=True)
class Routed:
    """What one adapter's router decided at one host in one forward pass.

    host: the path of the FFN in the model.
    logits: float32, (rows, [tokens,] experts), with their gradient.
    chosen: (rows, [tokens,] choices), the experts in order of preference, -1 for none.
    mask: bool, (rows, tokens), which tokens count; None if all.
    """

    host: str
    adapter: str
    logits: Tensor
    chosen: Tensor
    mask: Tensor | None


Tape = list[Routed]


class Rows:
    """Which of `names` each row of the batch belongs to.

    names: the adapters attached to the model.
    tape: where routers report, while they are recorded.
    masks: the tokens that count, while they are given.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._last: tuple[int, torch.device, dict[str | None, Tensor | None]] | None = None
        self.tape: Tape | None = None
        self.masks: Masks | None = None
        # with a single adapter all rows are its own unless someone says otherwise
        self._assigned: tuple[str | None, ...] | str | None = (
            self.names[0] if len(self.names) == 1 else ()
        )

    def assign(self, rows: Sequence[str | None] | str | None) -> None:
        """Say whose each row is: a name for each (None: the bare model), or one name for all.

        It holds until it is changed. Where a batch has n times as many rows, as in a search of n
        beams, each name stands for n rows that follow each other.

        Raises:
            ComposerError: an unknown name, or no row.
        """
        given = (rows,) if rows is None or isinstance(rows, str) else tuple(rows)
        for name in given:
            if name is not None and name not in self.names:
                known = ", ".join(f'"{known}"' for known in self.names) or "none"
                raise ComposerError(
                    f'No adapter "{name}" is attached to this model; it has {known}. Use one of '
                    "these names, or attach the adapter."
                )
        if not given:
            raise ComposerError("No row is assigned to an adapter: give a name for each row.")
        self._assigned = rows if rows is None or isinstance(rows, str) else given
        self._last = None

    @contextmanager
    def record_routing(self, masks: Masks | None = None) -> Generator[Tape, None, None]:
        """Collect what routers decide meanwhile. Stop before the backward pass: under gradient
        checkpointing the forward pass runs again there, and each router would report twice."""
        tape: Tape = []
        self.tape, self.masks = tape, masks
        try:
            yield tape
        finally:
            self.tape = self.masks = None

    def of(self, batch: int, device: torch.device) -> dict[str | None, Tensor | None]:
        """By adapter the indices of its rows, (rows,), or None for all rows; under the name None
        those of the bare model. Adapters without rows are left out.

        Raises:
            ComposerError: nothing was assigned, or it does not fit this batch.
        """
        assigned = self._assigned
        if assigned is None or isinstance(assigned, str):
            return {assigned: None}
        if not assigned or batch % len(assigned):
            had = f"{len(assigned)} rows are" if assigned else "none is"
            raise ComposerError(
                f"This batch has {batch} rows and {had} assigned to an adapter. Assign each row "
                "before the model runs: mixlora.assign([...])."
            )
        if self._last is not None and self._last[:2] == (batch, device):
            return self._last[2]
        each = batch // len(assigned)
        names = [name for name in assigned for _ in range(each)]
        found: dict[str | None, Tensor | None] = {names[0]: None}
        if len(set(names)) > 1:
            for name in dict.fromkeys(names):
                rows = [i for i, other in enumerate(names) if other == name]
                found[name] = torch.tensor(rows, device=device)
        self._last = (batch, device, found)  # every host asks for the same
        return found

    def mask_of(self, host: str, shape: tuple[int, int]) -> Tensor | None:
        """Which of a host's (batch, tokens) count, bool; None if no mask was given.

        Raises:
            ComposerError: the mask has another shape.
        """
        masks = self.masks
        if isinstance(masks, Mapping):
            masks = next((m for start, m in masks.items() if host.startswith(start)), None)
        if masks is None:
            return None
        if tuple(masks.shape) != shape:
            raise ComposerError(
                f"The mask of {host} has the shape {tuple(masks.shape)}, and its input {shape}: "
                "give the batch's own attention mask, for an encoder and a decoder one each."
            )
        return masks != 0
