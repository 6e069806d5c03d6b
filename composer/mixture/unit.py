"""One unit of a mixture: its sites, its gate, and who may speak in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from composer.errors import ComposerError
from composer.mixture.gates import ConstantGate
from composer.mixture.learned import LearnedGate
from composer.mixture.routing import Routing
from composer.mixture.stand_in import UnitModule
from composer.mixture.units import UnitPlan


@dataclass(kw_only=True)
class Unit:
    """What one gate governs.

    present: which experts change anything here.
    module: the stand-in at which a learned gate is asked; None where the model has no place for it.
    timed: whether the timestep is known where the gate is asked.
    constant: the weights, while no learned gate speaks here.
    pinned: weights that hold whatever the gate says; None for those of the gate.
    """

    plan: UnitPlan
    routing: Routing
    present: tuple[bool, ...]
    module: UnitModule | None = None
    timed: bool = False
    constant: ConstantGate = field(init=False)
    pinned: ConstantGate | None = None
    _learned: LearnedGate | None = None

    def __post_init__(self) -> None:
        self.constant = ConstantGate([1.0] * len(self.present))

    @property
    def learned(self) -> LearnedGate | None:
        """The gate that was trained for this unit, if it has one."""
        return self._learned

    @learned.setter
    def learned(self, gate: LearnedGate | None) -> None:
        if gate is not None:
            self.check(gate)
        self._learned = gate

    def check(self, gate: LearnedGate) -> None:
        """Refuse a learned gate that could not speak here.

        Raises:
            ComposerError: it is for another number of experts, or sees what is not there.
        """
        name, experts = self.plan.name, len(self.present)
        if self.module is None:
            raise ComposerError(
                f"{name} has no module at which a learned gate could be asked: leave it out."
            )
        if gate.experts != experts:
            raise ComposerError(
                f"The gate of {name} was made for {gate.experts} experts, and this mixture has "
                f"{experts}. Attach the experts it was trained with."
            )
        if gate.settings.input == "experts" and self.plan.whole:
            raise ComposerError(
                f"The gate of all of {name} is asked before any expert has spoken: let it see the "
                "hidden state, or choose the granularity block, layer or matrix."
            )
        if gate.settings.time and not self.timed:
            raise ComposerError(f"{name} knows no timestep: choose a gate without time for it.")

    def tell(self, mask: Tensor, strength: Tensor) -> None:
        """Let those in `mask`, bool (experts,), speak from now on as the unit's gate says, times
        their strength, float32 (experts,). Pins are as loud as they say."""
        learned = self._learned if self.pinned is None else None
        if self.module is not None:
            self.module.gate = learned
        if learned is not None:
            self.routing.allow(mask)
            self.routing.strengthen(strength)
            return
        if self.pinned is not None:
            weights = self.pinned(None, mask)
        else:
            weights = self.constant(None, mask) * strength.to(mask.device)
        self.routing.keep(weights)
        # At a constant weight of zero an expert is as good as off.
        self.routing.allow(weights != 0)
