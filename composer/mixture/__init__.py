"""Experts and gates attached to a model."""

from composer.mixture.always import attach_always
from composer.mixture.attach import attach
from composer.mixture.gates import ConstantGate, Gate
from composer.mixture.learned import GateSettings, LearnedGate
from composer.mixture.mixture import Mixture, Schedule
from composer.mixture.regions import Reach, RegionGate, region_maps
from composer.mixture.routing import Routing
from composer.mixture.seen import Seen
from composer.mixture.sites import ExpertConv2d, ExpertLinear, LowRankLike, Site
from composer.mixture.switches import Switch
from composer.mixture.unit import Unit
from composer.mixture.units import GRANULARITIES, Granularity

__all__ = [
    "GRANULARITIES",
    "ConstantGate",
    "ExpertConv2d",
    "ExpertLinear",
    "Gate",
    "GateSettings",
    "Granularity",
    "LearnedGate",
    "LowRankLike",
    "Mixture",
    "Reach",
    "RegionGate",
    "Routing",
    "Schedule",
    "Seen",
    "Site",
    "Switch",
    "Unit",
    "attach",
    "attach_always",
    "region_maps",
]
