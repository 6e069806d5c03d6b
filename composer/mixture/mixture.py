"""The handle on experts that are attached to models."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from composer.errors import ComposerError
from composer.mixture.gates import ConstantGate, Gate
from composer.mixture.learned import LearnedGate
from composer.mixture.replacement import Attached, Replacement
from composer.mixture.routing import Routing
from composer.mixture.sites import Site
from composer.mixture.stand_in import Watch, Weights
from composer.mixture.switches import Switch
from composer.mixture.unit import Unit

SCHEDULED = "unet"
"""The part that a schedule is for: prompts are read once for all steps."""

Schedule = Callable[[str, int, int], Sequence[float]]
"""From a unit's name, the number of a step from 0 and how many there are: what the weight of each
expert is multiplied by there, in the order of `Mixture.names`."""


class Mixture(Attached):
    """Experts attached to models, with a gate for each unit.

    After `attach` every expert has weight 1 everywhere. `copy.deepcopy(mixture)` is a mixture over
    copies of its models.

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
        super().__init__(replacements)
        self.names = names
        self.models = models
        self.sites = sites
        self.units = units
        self._watches = watches
        self._weights = {name: dict.fromkeys(models, 1.0) for name in names}
        self._strengths = dict.fromkeys(names, 1.0)
        self._on = dict.fromkeys(names, True)
        self._limited: list[Switch] = []
        self._step: tuple[int, int] | None = None
        self._schedule: Schedule | None = None
        parts: dict[str, list[str]] = {}
        for name, unit in units.items():
            parts.setdefault(unit.plan.part, []).append(name)
        self._depths = {
            name: (place + 0.5) / len(some)
            for some in parts.values()
            for place, name in enumerate(some)
        }

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
    def gates(self) -> dict[str, Gate]:
        """The gates that look at what their units see, by unit."""
        return {name: unit.gate for name, unit in self.units.items() if unit.gate.looks}

    @property
    def learned_gates(self) -> dict[str, LearnedGate]:
        """Those among them that were trained, or are to be."""
        return {n: gate for n, gate in self.gates.items() if isinstance(gate, LearnedGate)}

    def set_weights(self, weights: Mapping[str, float | Mapping[str, float]]) -> None:
        """Set the weight of every expert, in all units; one that is not named gets 0.

        Other gates are taken off.

        weights: by expert, one number for all parts or a number for each part:
            {"ada": 0.8, "ink": {"unet": 0.6, "text_encoder": 0.0}}.

        Raises:
            ComposerError: an unknown expert or part, a part left out, a weight that is not finite.
                The weights stay as they were.
        """
        self._check_names(weights)
        self._weights = {name: self._by_part(name, weights.get(name, 0.0)) for name in self.names}
        for unit in self.units.values():
            unit.gate = ConstantGate([self._weights[n][unit.plan.part] for n in self.names])
        self._set_masks()

    def set_gates(self, gates: Mapping[str, Gate]) -> None:
        """Let these gates weigh their units, in place of the constant weights there.

        Raises:
            ComposerError: an unknown unit, a gate for another number of experts or one that sees
                what is not there. Nothing is changed then.
        """
        for name, gate in gates.items():
            self._unit(name).check(gate)
        for name, gate in gates.items():
            unit = self.units[name]
            unit.gate = gate.to(unit.routing.weights.device)
        self._set_masks()

    def strengthen(self, strengths: Mapping[str, float]) -> None:
        """Multiply the weights of these experts, in all units that are not pinned: those of learned
        gates, and constant ones; by 1 for an expert that is not named.

        Raises:
            ComposerError: an unknown expert, a strength that is not finite.
        """
        self._check_names(strengths)
        self._strengths = {
            name: _finite(name, strengths.get(name, 1.0), "its strength") for name in self.names
        }
        self._set_masks()

    @property
    def strengths(self) -> dict[str, float]:
        """What each expert's weights are multiplied by."""
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
        self._set_masks((unit,))

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
        self._set_masks()

    def at_step(self, index: int, total: int) -> None:
        """Say which step of a sampling comes next: switches limited to steps follow it, and the
        schedule."""
        self._set_step((index, total))

    def at_rest(self) -> None:
        """Say that no sampling is under way: no schedule and no switch limited to steps holds."""
        self._set_step(None)

    def follow(self, schedule: Schedule | None) -> None:
        """Multiply the weights in the units of the U-Net by those of a schedule, from step to step;
        None ends it. Outside of a sampling it does not hold."""
        self._schedule = schedule
        self._set_masks()

    def _set_step(self, step: tuple[int, int] | None) -> None:
        self._step = step
        if self._schedule or any(switch.steps is not None for switch in self._limited):
            self._set_masks()

    def weigh_rows(self, weights: Tensor) -> None:
        """Give each row of the batches to come constant weights of its own, in all units, whatever
        their gates, pins and switches; until they are given anew, or `weighing_rows` ends.

        weights: (batch, experts).
        """
        self._hold_rows(ConstantGate(weights))

    @contextmanager
    def weighing_rows(self) -> Generator[None, None, None]:
        """Around calls of `weigh_rows`: after it gates, pins and switches hold again."""
        try:
            yield
        finally:
            self._hold_rows(None)

    def _hold_rows(self, gate: ConstantGate | None) -> None:
        for unit in self.units.values():
            unit.by_rows = gate
        self._set_masks()

    @contextmanager
    def record_weights(self) -> Generator[Weights, None, None]:
        """Record the weights that gates give meanwhile: (unit, weights) at each time one is asked.

        Stop before the backward pass: under gradient checkpointing the forward pass runs again
        there, and each gate would be recorded twice.
        """
        tape: Weights = []
        for watch in self._watches.values():
            watch.tape = tape
        try:
            yield tape
        finally:
            for watch in self._watches.values():
                watch.tape = None

    @property
    def needs_regions(self) -> bool:
        """Whether some gate needs maps of where the words of each expert act."""
        return any(unit.gate.needs_regions for unit in self.units.values())

    @property
    def needs_concepts(self) -> bool:
        """Whether some gate needs the maps that attention shows."""
        return any(unit.gate.needs_concepts for unit in self.units.values())

    def set_region_maps(self, maps: Tensor | None, words: Tensor | None = None) -> None:
        """Give the gates maps of where each expert's words act, (pictures, experts, h, w), until
        others are given.

        The rows of the passes to come are a multiple of the pictures, those of one kind together,
        those with the prompt last.

        words: which tokens of the prompt each expert may change, (pictures, experts, tokens).
        """
        for watch in self._watches.values():
            watch.regions, watch.words = maps, words

    def look_at(self, counted: Mapping[str, Tensor]) -> None:
        """Say which tokens count for the means that gates take, until others are given: of a
        sequence those that are no padding, and in a causal model those of the request alone, for a
        mean over the answer would see tokens that are not written yet.

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
        """Meanwhile a gate is asked when its unit first runs, and its weights hold: while an answer
        is written token by token, with a cache or without, they are those of the request."""
        for watch in self._watches.values():
            watch.decided = set()
        try:
            yield
        finally:
            for watch in self._watches.values():
                watch.decided = None

    @contextmanager
    def without_gates(self) -> Generator[None, None, None]:
        """Meanwhile no gate is asked: every expert that is on has weight 1 in its place."""
        for watch in self._watches.values():
            watch.plain = True
        try:
            yield
        finally:
            for watch in self._watches.values():
                watch.plain = False

    def depth_of(self, unit: str) -> float:
        """Where a unit lies among those of its part, in the order they run: 0 to 1."""
        return self._depths[self._unit(unit).plan.name]

    def _set_masks(self, units: Collection[str] | None = None) -> None:
        """Set which experts are on in these units, or in all, and what their weights are multiplied
        by."""
        everywhere = torch.tensor([self._on[name] for name in self.names], dtype=torch.bool)
        strength = torch.tensor([self._strengths[name] for name in self.names])
        time = None if self._step is None else (self._step[0] + 0.5) / self._step[1]
        for name in self.units if units is None else units:
            unit, mask, times = self.units[name], everywhere, strength
            for switch in self._limited:
                if switch.meant(name, self.depth_of(name), time):
                    mask = mask.clone()
                    mask[self.names.index(switch.expert)] = switch.on
            if self._schedule and self._step and unit.plan.part == SCHEDULED:
                times = strength * torch.tensor(self._schedule(name, *self._step))
            unit.set_mask(mask, times)

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
