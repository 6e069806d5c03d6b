"""Gates for a single expert, which has nobody to be weighed against."""

from __future__ import annotations

import dataclasses

from composer.mixture import GateSettings
from composer.training.gates.config import GateTraining


def of_one(config: GateTraining) -> GateTraining:
    """The training whose gates say exactly 1 for the only expert, whatever was asked for.

    The only share of a softmax is 1, bit for bit, so there is nothing to learn and nobody to ask:
    no steps and no judges, and of the teacher one step, from which the units' sizes are seen. The
    gates see what costs least and binds them to nothing.
    """
    return dataclasses.replace(
        config,
        gate=GateSettings(input="hidden", reduce="mean", activation="softmax"),
        start="even",
        steps=0,
        teacher="changes",
        trajectories=1,
        teacher_steps=1,
        router_balance=0.0,  # which is for gates that choose
        resume=False,
    )
