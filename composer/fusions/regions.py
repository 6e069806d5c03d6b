"""Each LoRA in its place, without training: gates that hear where its own words act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from composer.fusions.registry import Fusion, Weight
from composer.fusions.weighted import weigh
from composer.mixture import REGIONS, Mixture, RegionGate

_PART = "unet"


def region_gates(mixture: Mixture, weights: Mapping[str, Weight]) -> dict[str, RegionGate]:
    """A gate for each unit of the U-Net that can be asked: the maps, times each LoRA's weight."""
    told = {name: weights.get(name, 0.0) for name in mixture.names}
    strength = torch.tensor(
        [float(w.get(_PART, 0.0) if isinstance(w, Mapping) else w) for w in told.values()]
    )
    settings = replace(REGIONS, time=False)
    gates: dict[str, RegionGate] = {}
    for name, unit in mixture.units.items():
        if unit.plan.part == _PART and unit.module is not None:
            gates[name] = RegionGate(settings, unit.present)
            with torch.no_grad():
                gates[name].e.mul_(strength[:, None])
    return gates


BY_REGION = Fusion(
    name="regions",
    title="Trigger regions",
    paper="https://arxiv.org/abs/2404.13628",
    description="Each LoRA speaks where its own trigger words act, and louder there; a style "
    "speaks everywhere. Needs no training; a picture takes longer.",
    weigh=weigh,
    by_region=True,
)
