"""Experts and gates attached to a model."""

from composer.mixture.attach import attach
from composer.mixture.gates import ConstantGate, Gate
from composer.mixture.mixture import Mixture
from composer.mixture.routing import Routing
from composer.mixture.sites import ExpertConv2d, ExpertLinear, LowRankLike, Site

__all__ = [
    "ConstantGate",
    "ExpertConv2d",
    "ExpertLinear",
    "Gate",
    "LowRankLike",
    "Mixture",
    "Routing",
    "Site",
    "attach",
]
