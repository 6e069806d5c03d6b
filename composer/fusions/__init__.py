"""Fusions: named methods of using several experts. The page, the command line and the docs draw
from this registry."""

from composer.fusions.nla import NLA
from composer.fusions.regions import BY_REGION, region_gates
from composer.fusions.registry import Fusion, Weight
from composer.fusions.weighted import WEIGHTED

FUSIONS: dict[str, Fusion] = {fusion.name: fusion for fusion in (WEIGHTED, NLA, BY_REGION)}

__all__ = ["FUSIONS", "Fusion", "Weight", "region_gates"]
