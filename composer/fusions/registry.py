"""What a fusion is. The registry of all of them is `composer.fusions.FUSIONS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Weight = float | Mapping[str, float]
"""One number for all parts of the model, or a number for each part: {"unet": 0.8, ...}."""


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """A named way from the weights that a user gives to the weights of a constant gate.

    name: for the command line and files.
    title: for people.
    paper: where it is described.
    description: one or two plain sentences for the page and the docs.
    weigh: weights by expert in, weights by expert out; `Mixture.set_weights` takes them. Give it
        the experts that are switched on only.
    by_region: the weights count where each expert's words act, not everywhere: the mixture takes
        `region_gates` for its U-Net, and whoever samples tells it the regions.
    """

    name: str
    title: str
    paper: str
    description: str
    weigh: Callable[[Mapping[str, Weight]], dict[str, Weight]]
    by_region: bool = False
