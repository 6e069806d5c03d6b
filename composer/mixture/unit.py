"""One unit of a mixture: its sites, its gate, and which experts are on in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from composer.errors import ComposerError
from composer.mixture.gates import ConstantGate, Gate
from composer.mixture.routing import Routing
from composer.mixture.stand_in import UnitModule
from composer.mixture.units import UnitPlan


@dataclass(kw_only=True)
class Unit:
    """What one gate governs.

    present: which experts change anything here.
    module: the stand-in at which a gate that looks is asked; None where the model has no place for
        it.
    timed: whether the timestep is known where the gate is asked.
    gate: what weighs the experts here; at first every weight is 1.
    pinned: weights that hold whatever the gate gives; None for those of the gate.
    by_rows: weights of each row of a batch, (batch, experts), that hold in place of all others and
        whatever is on; None for none.
    """

    plan: UnitPlan
    routing: Routing
    present: tuple[bool, ...]
    module: UnitModule | None = None
    timed: bool = False
    gate: Gate = field(init=False)
    pinned: ConstantGate | None = None
    by_rows: ConstantGate | None = None

    def __post_init__(self) -> None:
        self.gate = ConstantGate([1.0] * len(self.present))

    def check(self, gate: Gate) -> None:
        """Refuse a gate that could not weigh this unit.

        Raises:
            ComposerError: it is for another number of experts, or sees what is not there.
        """
        name, experts = self.plan.name, len(self.present)
        if gate.looks and self.module is None:
            raise ComposerError(
                f"{name} has no module at which a learned gate could be asked: leave it out."
            )
        if gate.experts != experts:
            raise ComposerError(
                f"The gate of {name} was made for {gate.experts} experts, and this mixture has "
                f"{experts}. Attach the experts it was trained with."
            )
        if gate.needs_outputs and self.plan.whole:
            raise ComposerError(
                f"The gate of all of {name} is asked before any expert has run: let it see the "
                "hidden state, or choose the granularity block, layer or matrix."
            )
        if gate.needs_time and not self.timed:
            raise ComposerError(f"{name} knows no timestep: choose a gate without time for it.")

    def set_mask(self, mask: Tensor, strength: Tensor) -> None:
        """Weigh the experts in `mask`, bool (experts,), from now on as the unit's gate does, times
        their strength, float32 (experts,). Pins hold as they are, and weights of rows for all
        experts."""
        routing = self.routing
        gate = self.by_rows or self.pinned or self.gate
        if self.module is not None:
            self.module.gate = gate if gate.looks else None
        if gate.looks:
            routing.allow(mask)
            routing.strengthen(strength)
            return
        if self.by_rows is not None:
            mask = mask.new_ones(mask.shape)
        weights = gate(None, mask.to(routing.mask.device))
        if gate is self.gate:
            weights = weights * strength.to(weights.device)
        routing.keep(weights)
        # An expert whose weight is constantly zero is as good as off.
        routing.allow((weights != 0).reshape(-1, weights.shape[-1]).any(0))
