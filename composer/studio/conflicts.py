"""What the LoRAs of a request do to each other, before anything is painted, as a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from composer.clock import Clock
from composer.errors import ComposerError
from composer.evaluation.conflicts import STEPS, Conflicts, changes, conflicts_of
from composer.studio.events import Event, Finished, Progress

if TYPE_CHECKING:
    from composer.fusions import Plan
    from composer.studio.engine import Engine


def examine(
    engine: Engine, plan: Plan, prompt: str, cancelled: Callable[[], bool]
) -> Iterator[Event | Conflicts]:
    """The report, after the progress of finding it; none once cancelled.

    prompt: for some steps of the bare model; without one the weights alone are compared.

    Raises:
        ComposerError: no LoRA is active, or one cannot be used.
    """
    found = engine.mix(plan)
    mixture = engine.mixture
    if mixture is None:
        raise ComposerError("No LoRA is active: choose those that are to be checked.")
    weights = {name: plan.rows[name].weight for name in mixture.names}
    seen: list[torch.Tensor] = []
    clock = Clock(0, STEPS)
    for predicted in changes(engine.model, mixture, weights, prompt) if prompt.strip() else ():
        if cancelled():
            yield Finished(cancelled=True)
            return
        seen.append(predicted)
        yield Progress(
            step=len(seen),
            steps=STEPS,
            pictures=range(0),
            count=0,
            seconds_left=clock.seconds_left(len(seen)),
        )
    experts = [found[name] for name in mixture.names]
    yield conflicts_of(experts, weights, engine.modules, torch.stack(seen) if seen else None)
    yield Finished()
