"""Each LoRA in its place, without training: gates that follow where its own words act."""

from __future__ import annotations

from collections.abc import Mapping

from composer.fusions.recipe import Weight
from composer.mixture import Mixture, RegionGate

_PART = "unet"


def region_gates(
    mixture: Mixture, weights: Mapping[str, Weight], *, concepts: bool = False
) -> dict[str, RegionGate]:
    """A gate for each unit of the U-Net that can be asked: the maps, times each LoRA's weight.

    concepts: whether the maps are those that attention shows.
    """
    given = (weights.get(name, 0.0) for name in mixture.names)
    numbers = [float(w.get(_PART, 0.0) if isinstance(w, Mapping) else w) for w in given]
    return {
        name: RegionGate(numbers, unit.present, concepts=concepts)
        for name, unit in mixture.units.items()
        if unit.plan.part == _PART and unit.module is not None
    }
