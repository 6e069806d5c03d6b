"""An instant start for gates that read: what they see, fitted to the maps of where experts act.

A gate that looks at each token is linear in what it sees, so the gate that comes nearest to the
maps m of a composed picture is a least-squares solution over tokens x of composed prompts:

    minimise  sum_x || e v(x) + b + T(t) - m(x) ||^2 + ridge ||(e, T)||^2

It is found from sums alone, a unit at a time, with no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from composer.mixture import LearnedGate, Mixture, RegionGate, Seen
from composer.mixture.seen import as_tokens

RIDGE = 1e-3


class Readings:
    """Sums over all tokens seen so far, for each gate that is to be fitted."""

    def __init__(self, mixture: Mixture, gates: Mapping[str, LearnedGate]) -> None:
        self._mixture, self._gates = mixture, gates
        self._left: dict[str, Tensor] = {}
        self._right: dict[str, Tensor] = {}
        self._seen = 0

    @torch.no_grad()
    def watch(self, run: Callable[[], Any], maps: Tensor) -> None:
        """Run the model once with these maps, (rows, experts, h, w), and add up what units see."""
        handles: list[Any] = []
        for name, gate in self._gates.items():
            module: Any = self._mixture.units[name].module

            def hook(
                module: Any,
                inputs: tuple[Any, ...],
                given: Mapping[str, Any],
                name: str = name,
                gate: LearnedGate = gate,
            ) -> None:
                hidden = cast(Tensor, inputs[0] if inputs else given["hidden_states"])
                self._add(name, gate, hidden, module.watch.time, maps)

            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        self._seen += 1

    def _add(
        self, name: str, gate: LearnedGate, hidden: Tensor, time: Tensor | None, maps: Tensor
    ) -> None:
        tokens, grid = as_tokens(hidden)
        seen = Seen(hidden=tokens, grid=grid, regions=maps)
        target = RegionGate.places(seen, gate.experts)
        parts = [gate.look(seen), torch.ones_like(tokens[..., :1], dtype=torch.float32)]
        if gate.clock is not None and time is not None:
            clock = functional.layer_norm(time.float(), time.shape[-1:])
            clock = clock / math.sqrt(clock.shape[-1])
            parts.append(clock.expand(len(tokens), -1)[:, None].expand(-1, tokens.shape[1], -1))
        features = torch.cat(parts, -1).flatten(0, 1)
        share = 1.0 / len(features)
        left = (features.T @ features).double() * share
        right = (features.T @ target.flatten(0, 1)).double() * share
        self._left[name] = self._left.get(name, torch.zeros_like(left)) + left
        self._right[name] = self._right.get(name, torch.zeros_like(right)) + right

    @torch.no_grad()
    def fit(self, *, ridge: float = RIDGE) -> None:
        """Set the gates to the solutions."""
        for name, gate in self._gates.items():
            left = self._left[name] / self._seen
            width = gate.e.shape[1]
            strength = torch.full((len(left),), ridge, dtype=left.dtype, device=left.device)
            strength[width] = 0.0  # not the bias: what is the same everywhere costs nothing
            found: Tensor = cast(Any, torch.linalg).solve(
                left + strength.diag(), self._right[name] / self._seen
            )
            solution = found.T.float()
            gate.e.copy_(solution[:, :width])
            if gate.b is not None:
                gate.b.copy_(solution[:, width])
            if gate.clock is not None:
                gate.clock.copy_(solution[:, width + 1 :])
