"""Which experts are on, where and when."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from composer.errors import ComposerError


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One expert, switched on or off in a part of the model or of the sampling.

    units: these alone; None for all.
    depth: from which part of the units to which, in the order the model runs them, 0 to 1; a unit
        is meant when its middle lies there. (0.0, 0.2) is the first fifth, as in MoLE's table 5.
    steps: from which part of the sampling to which, 0 to 1, likewise by the middle of each step.
    """

    expert: str
    on: bool
    units: Collection[str] | None = None
    depth: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, span in (("depth", self.depth), ("steps", self.steps)):
            if span is not None and not 0.0 <= span[0] < span[1] <= 1.0:
                raise ComposerError(
                    f"The {name} of a switch are {span[0]} to {span[1]}: give a start and a later "
                    "end, from 0 to 1."
                )

    @property
    def everywhere(self) -> bool:
        return self.units is None and self.depth is None and self.steps is None

    def meant(self, unit: str, depth: float, time: float | None) -> bool:
        """Whether it holds in this unit now; `time` None is outside of any sampling."""
        if self.units is not None and unit not in self.units:
            return False
        if self.depth is not None and not self.depth[0] <= depth < self.depth[1]:
            return False
        return self.steps is None or (time is not None and self.steps[0] <= time < self.steps[1])
