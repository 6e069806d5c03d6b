"""The handle on experts that are attached to models."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.mixture.gates import ConstantGate
from composer.mixture.learned import LearnedGate
from composer.mixture.replacement import Replacement, undo
from composer.mixture.routing import Routing
from composer.mixture.rows import Routed
from composer.mixture.sites import Site
from composer.mixture.stand_in import Watch, Weights
from composer.mixture.switches import Switch
from composer.mixture.unit import Unit


class Mixture:
    """Experts attached to models, with a gate for each unit.

    After `attach` every expert speaks everywhere with weight 1. The handle is also a context
    manager that detaches at its end. `copy.deepcopy(mixture)` is a mixture over copies of its
    models.

    names: the experts, in the order of the last axis of all gate weights.
    models: the parts.
    sites: the stand-ins, by site name.
    units: what the gates govern, by name, in the order the models run them.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        models: Mapping[str, nn.Module],
        sites: Mapping[str, Site],
        units: Mapping[str, Unit],
        watches: Mapping[str, Watch],
        replacements: list[Replacement],
    ) -> None:
        self.names = names
        self.models = models
        self.sites = sites
        self.units = units
        self._watches = watches
        self._replacements = replacements
        self._weights = {name: dict.fromkeys(models, 1.0) for name in names}
        self._strengths = dict.fromkeys(names, 1.0)
        self._on = dict.fromkeys(names, True)
        self._limited: list[Switch] = []
        self._time: float | None = None

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """Each expert's constant weight for each part, as it was set, whether it is on or not."""
        return {name: dict(by_part) for name, by_part in self._weights.items()}

    @property
    def switches(self) -> dict[str, bool]:
        """Which experts are switched on, where no narrower switch says otherwise."""
        return dict(self._on)

    @property
    def routings(self) -> dict[str, Routing]:
        """The cell that each unit's sites read."""
        return {name: unit.routing for name, unit in self.units.items()}

    @property
    def gates(self) -> dict[str, LearnedGate]:
        """The learned gates, by unit."""
        return {name: u.learned for name, u in self.units.items() if u.learned is not None}

    def set_weights(self, weights: Mapping[str, float | Mapping[str, float]]) -> None:
        """Set the weight of every expert, in all units; one that is not named gets 0.

        Learned gates are taken off.

        weights: by expert, one number for all parts or a number for each part:
            {"ada": 0.8, "ink": {"unet": 0.6, "text_encoder": 0.0}}.

        Raises:
            ComposerError: an unknown expert or part, a part left out, a weight that is not finite.
                The weights stay as they were.
        """
        self._check_names(weights)
        self._weights = {name: self._by_part(name, weights.get(name, 0.0)) for name in self.names}
        for unit in self.units.values():
            unit.learned = None
            unit.constant = ConstantGate([self._weights[n][unit.plan.part] for n in self.names])
        self._tell()

    def set_gates(self, gates: Mapping[str, LearnedGate]) -> None:
        """Let learned gates speak in their units, in place of the constant weights there.

        Raises:
            ComposerError: an unknown unit, a gate for another number of experts or one that sees
                what is not there. Nothing is changed then.
        """
        for name, gate in gates.items():
            self._unit(name).check(gate)
        for name, gate in gates.items():
            unit = self.units[name]
            unit.learned = gate.to(unit.routing.weights.device)
        self._tell()

    def strengthen(self, strengths: Mapping[str, float]) -> None:
        """Let what is said of these experts count so many times, in all units that are not pinned:
        the weights of learned gates, and constant ones; 1 for an expert that is not named.

        Raises:
            ComposerError: an unknown expert, a strength that is not finite.
        """
        self._check_names(strengths)
        self._strengths = {
            name: _finite(name, strengths.get(name, 1.0), "its strength") for name in self.names
        }
        self._tell()

    @property
    def strengths(self) -> dict[str, float]:
        """How many times what is said of each expert counts."""
        return dict(self._strengths)

    def pin(self, unit: str, weights: Mapping[str, float] | None) -> None:
        """Fix the weights of one unit by hand, or (None) give it back to its gate.

        Raises:
            ComposerError: an unknown unit or expert, a weight that is not finite.
        """
        found = self._unit(unit)
        if weights is None:
            found.pinned = None
        else:
            self._check_names(weights)
            numbers = [_finite(name, weights.get(name, 0.0), unit) for name in self.names]
            found.pinned = ConstantGate(numbers)
        self._tell((unit,))

    def toggle(
        self,
        name: str,
        on: bool,
        *,
        units: Collection[str] | None = None,
        depth: tuple[float, float] | None = None,
        steps: tuple[float, float] | None = None,
    ) -> None:
        """Switch an expert on or off, everywhere or in a part; its weight is kept.

        Learned gates give its share to the others. A switch without limits also takes back the
        limited ones of this expert. See `Switch` for what the limits mean.

        Raises:
            ComposerError: an unknown expert or unit, limits that are none.
        """
        self._check_names((name,))
        for unit in units or ():
            self._unit(unit)
        switch = Switch(expert=name, on=on, units=units, depth=depth, steps=steps)
        if switch.everywhere:
            self._on[name] = on
            self._limited = [other for other in self._limited if other.expert != name]
        else:
            self._limited.append(switch)
        self._tell()

    def at_step(self, index: int, total: int) -> None:
        """Say which step of a sampling comes next: switches limited to steps follow it."""
        self._set_time((index + 0.5) / total)

    def at_rest(self) -> None:
        """Say that no sampling is under way: switches limited to steps do not hold now."""
        self._set_time(None)

    def _set_time(self, time: float | None) -> None:
        self._time = time
        if any(switch.steps is not None for switch in self._limited):
            self._tell()

    @contextmanager
    def listen(self, routed: list[Routed] | None = None) -> Generator[Weights, None, None]:
        """Write down what learned gates say meanwhile: (unit, weights) at each time one is asked.

        routed: gets what those decided that let only the strongest speak.

        Stop listening before the backward pass: under gradient checkpointing the forward pass runs
        again there, and each gate would be heard twice.
        """
        tape: Weights = []
        for watch in self._watches.values():
            watch.tape, watch.routed = tape, routed
        try:
            yield tape
        finally:
            for watch in self._watches.values():
                watch.tape = watch.routed = None

    @property
    def hears_regions(self) -> bool:
        """Whether some gate listens to where the words of each expert act."""
        return any(gate.settings.hears for gate in self.gates.values())

    def hear(self, regions: Tensor | None) -> None:
        """Tell the gates where each expert's words act, (pictures, experts, h, w), until told anew.

        The rows of the passes to come are a multiple of the pictures, those of one kind together.
        """
        for watch in self._watches.values():
            watch.regions = regions

    def look_at(self, counted: Mapping[str, Tensor]) -> None:
        """Tell gates that take a mean which tokens count for it, until told anew: of a sequence
        those that are no padding, and in a causal model those of the request alone, for a mean over
        the answer would hear of tokens that are not written yet.

        counted: by unit, (rows, tokens), nonzero for those that count; all do in other units.

        Raises:
            ComposerError: an unknown unit.
        """
        for name in counted:
            self._unit(name)
        for watch in self._watches.values():
            watch.counted = dict(counted)

    @contextmanager
    def deciding_once(self) -> Generator[None, None, None]:
        """Meanwhile a gate that takes one vector of a sequence is asked when its unit first runs,
        and stands by what it said: while an answer is written token by token, with a cache or
        without, this is the request. Gates that weigh each token go on as ever."""
        for watch in self._watches.values():
            watch.decided = set()
        try:
            yield
        finally:
            for watch in self._watches.values():
                watch.decided = None

    @contextmanager
    def plainly(self) -> Generator[None, None, None]:
        """Meanwhile no gate is asked: every expert that is on speaks with weight 1 in its place."""
        for watch in self._watches.values():
            watch.plain = True
        try:
            yield
        finally:
            for watch in self._watches.values():
                watch.plain = False

    def depth_of(self, unit: str) -> float:
        """Where a unit lies among those of its part, in the order they run: 0 to 1."""
        part = self._unit(unit).plan.part
        names = [name for name, other in self.units.items() if other.plan.part == part]
        return (names.index(unit) + 0.5) / len(names)

    def detach(self) -> None:
        """Put the original modules back. The mixture is of no more use; again is harmless."""
        undo(self._replacements)

    def __enter__(self) -> Mixture:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def _tell(self, units: Collection[str] | None = None) -> None:
        """Tell these units, or all, who may speak there and how strongly."""
        everywhere = torch.tensor([self._on[name] for name in self.names], dtype=torch.bool)
        strength = torch.tensor([self._strengths[name] for name in self.names])
        for name in self.units if units is None else units:
            unit, mask = self.units[name], everywhere
            for switch in self._limited:
                if switch.meant(name, self.depth_of(name), self._time):
                    mask = mask.clone()
                    mask[self.names.index(switch.expert)] = switch.on
            unit.tell(mask, strength)

    def _unit(self, name: str) -> Unit:
        if name not in self.units:
            known = ", ".join(list(self.units)[:4])
            raise ComposerError(
                f'There is no unit "{name}" in this mixture. Its {len(self.units)} units are '
                f"{known} …: use one of mixture.units."
            )
        return self.units[name]

    def _check_names(self, names: Mapping[str, object] | tuple[str, ...]) -> None:
        for name in names:
            if name not in self._on:
                known = ", ".join(f'"{known}"' for known in self.names) or "none"
                raise ComposerError(
                    f'There is no expert "{name}" in this mixture; it has {known}. Use one of '
                    "these names, or attach again with this expert."
                )

    def _by_part(self, name: str, weight: float | Mapping[str, float]) -> dict[str, float]:
        if not isinstance(weight, Mapping):
            weight = dict.fromkeys(self.models, weight)
        if weight.keys() != self.models.keys():
            parts = ", ".join(f'"{part}"' for part in self.models)
            raise ComposerError(
                f'The weights of "{name}" are for {", ".join(weight) or "no part"}: give one '
                f"number for all, or one for each of {parts}."
            )
        return {part: _finite(name, weight[part], part) for part in self.models}


def _finite(name: str, weight: float, where: str) -> float:
    if not math.isfinite(weight):
        raise ComposerError(
            f'The weight of "{name}" for {where} is {weight}: give a finite number.'
        )
    return float(weight)
