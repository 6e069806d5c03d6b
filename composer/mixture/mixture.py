"""The handle on experts that are attached to models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType

import torch
from torch import nn

from composer.errors import ComposerError
from composer.mixture.gates import ConstantGate
from composer.mixture.replacement import Replacement
from composer.mixture.routing import Routing
from composer.mixture.sites import Site


class Mixture:
    """Experts attached to models, with a constant gate for each model ("part").

    After `attach` every expert speaks with weight 1. The handle is also a context manager that
    detaches at its end. `copy.deepcopy(mixture)` is a mixture over copies of its models.

    names: the experts, in the order of the last axis of all gate weights.
    models: the parts.
    sites: the stand-ins, by site name.
    routings: the cell that each part's sites read.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        models: Mapping[str, nn.Module],
        sites: Mapping[str, Site],
        routings: Mapping[str, Routing],
        replacements: list[Replacement],
    ) -> None:
        self.names = names
        self.models = models
        self.sites = sites
        self.routings = routings
        self._replacements = replacements
        self._on = dict.fromkeys(names, True)
        self._gates = {part: ConstantGate([1.0] * len(names)) for part in models}

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """Each expert's weight for each part, as it was set, whether it is switched on or not."""
        return {
            name: {part: gate.weights[index] for part, gate in self._gates.items()}
            for index, name in enumerate(self.names)
        }

    @property
    def switches(self) -> dict[str, bool]:
        """Which experts are switched on."""
        return dict(self._on)

    def set_weights(self, weights: Mapping[str, float | Mapping[str, float]]) -> None:
        """Set the weight of every expert; one that is not named gets 0.

        weights: by expert, one number for all parts or a number for each part:
            {"ada": 0.8, "ink": {"unet": 0.6, "text_encoder": 0.0}}.

        Raises:
            ComposerError: an unknown expert or part, a part left out, a weight that is not finite.
                The weights stay as they were.
        """
        self._check_names(weights)
        given = {name: self._by_part(name, weights.get(name, 0.0)) for name in self.names}
        for part in self._gates:
            self._gates[part] = ConstantGate([given[name][part] for name in self.names])
        self._tell()

    def toggle(self, name: str, on: bool) -> None:
        """Switch an expert on or off; its weight is kept.

        Raises:
            ComposerError: an unknown expert.
        """
        self._check_names((name,))
        self._on[name] = on
        self._tell()

    def detach(self) -> None:
        """Put the original modules back. The mixture is of no more use; again is harmless."""
        while self._replacements:
            self._replacements.pop().undo()

    def __enter__(self) -> Mixture:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def _tell(self) -> None:
        mask = torch.tensor([self._on[name] for name in self.names], dtype=torch.bool)
        for part, routing in self.routings.items():
            weights = self._gates[part](None, mask)
            routing.keep(weights)
            # At a constant weight of zero an expert is as good as off.
            routing.allow(weights != 0)

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
        for part, number in weight.items():
            if not math.isfinite(number):
                raise ComposerError(
                    f'The weight of "{name}" for {part} is {number}: give a finite number.'
                )
        return {part: float(weight[part]) for part in self.models}
