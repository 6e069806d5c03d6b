"""Modules that stand in for others so that gates are asked: no hook, no patched forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from composer.mixture.gates import ConstantGate, Gate
from composer.mixture.routing import Routing
from composer.mixture.seen import Seen, as_tokens
from composer.mixture.sites import Site

Weights = list[tuple[str, Tensor]]
"""Weights that gates gave: a unit's name and its weights, one entry for each time it was asked."""


class Watch:
    """What the stand-ins of one part share while it runs.

    time: the embedding of the timestep of the pass going on, (batch, width).
    tape: gates' weights are recorded here, while someone wants them.
    probing: a unit runs for one expert alone; nothing is recorded.
    regions: where the words of each expert act, (pictures, experts, h, w), for gates that need it.
    words: which tokens of the text each expert may change; see `Seen`.
    plain: no gate is asked; where one stands, every expert that is on has weight 1.
    counted: by unit the tokens that its gate takes the mean of, (rows, tokens); all of them in a
        unit that is not there.
    decided: while gates are asked once alone, the units that were; None otherwise.
    """

    def __init__(self) -> None:
        self.time: Tensor | None = None
        self.tape: Weights | None = None
        self.probing = False
        self.regions: Tensor | None = None
        self.words: Tensor | None = None
        self.plain = False
        self.counted: Mapping[str, Tensor] = {}
        self.decided: set[str] | None = None


class StandIn(nn.Module):
    """Looks like its `base` to whoever reads its attributes."""

    base: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        # not self.train(...): that would set the modules inside the base as well
        self.training = base.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class Timekeeper(StandIn):
    """Stands in for a U-Net's `time_embedding`: keeps what it gives for the gates."""

    def __init__(self, base: nn.Module, watch: Watch) -> None:
        super().__init__(base)
        self.watch = watch

    def forward(self, *inputs: Any, **settings: Any) -> Tensor:
        self.watch.time = None  # not yet known to a gate that stands in here
        embedding = cast(Tensor, self.base(*inputs, **settings))
        self.watch.time = embedding.detach()
        return embedding


class UnitModule(StandIn):
    """Stands in for a unit's module: asks the gate, sets the unit's weights, runs the module.

    gate: one that looks; None while the unit's weights are constant, and then nothing is done here.
    entry: the unit is the whole network, and the base the first module of it: the gate sees what
        this gives, not what it takes.

    Under gradient checkpointing a unit's layers run again in the backward pass, and read there the
    weights that were set last: go backward before the model runs again.
    """

    gate: Gate | None

    def __init__(
        self, name: str, base: nn.Module, routing: Routing, watch: Watch, *, entry: bool
    ) -> None:
        super().__init__(base)
        self.name, self.routing, self.watch, self.entry = name, routing, watch, entry
        self.gate = None

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        """As the base's, with the experts of this unit weighed for this input."""
        if self.gate is None or self.routing.off:
            return self.base(*inputs, **settings)
        if self.watch.plain:
            self.routing.keep(self.routing.mask.float())
            return self.base(*inputs, **settings)
        if self._is_decided():
            return self.base(*inputs, **settings)
        if self.entry:
            # without the experts that may stand there themselves: they wait for the gate
            bare = self.base.base if isinstance(self.base, Site) else self.base
            output = bare(*inputs, **settings)
            self._ask(self.gate, cast(Tensor, output))
            return output if bare is self.base else self.base(*inputs, **settings)
        hidden = inputs[0] if inputs else settings["hidden_states"]
        if self.gate.needs_outputs:
            self._ask(self.gate, cast(Tensor, hidden), *self._outputs(self.gate, inputs, settings))
        else:
            self._ask(self.gate, cast(Tensor, hidden))
        return self.base(*inputs, **settings)

    def _is_decided(self) -> bool:
        """Whether the gate has been asked already for the sequence that is going on."""
        decided = self.watch.decided
        if decided is None or self.watch.probing:
            return False
        if self.name in decided:
            return True
        decided.add(self.name)
        return False

    def _ask(
        self,
        gate: Gate,
        hidden: Tensor,
        outputs: Tensor | None = None,
        outputs_grid: tuple[int, int] | None = None,
    ) -> None:
        tokens, grid = as_tokens(hidden)
        if outputs is not None:
            grid = outputs_grid  # a sampler's output has another size than its input
        time = self.watch.time
        if time is not None and time.shape[0] != tokens.shape[0]:
            time = time.expand(tokens.shape[0], -1)  # one timestep for the whole batch
        seen = Seen(
            hidden=tokens,
            outputs=outputs,
            time=time,
            grid=grid,
            counted=self.watch.counted.get(self.name),
            regions=self.watch.regions,
            words=self.watch.words,
        )
        weights = self.routing.strengthened(gate(seen, self.routing.mask))
        words, places = None, tokens.shape[1]
        if weights.ndim == 3 and weights.shape[1] > places:
            weights, words = weights[:, :places], weights[:, places:]
        self.routing.keep(weights, grid, words)
        if self.watch.tape is not None and not self.watch.probing:
            self.watch.tape.append((self.name, weights))

    @torch.no_grad()
    def _outputs(
        self, gate: Gate, inputs: tuple[Any, ...], settings: dict[str, Any]
    ) -> tuple[Tensor, tuple[int, int] | None]:
        """E_i, (experts, batch, tokens, width), and their grid: the module once for each expert
        alone, less the module without any."""
        if settings.get("past_key_values") is not None:
            # what an expert alone would have kept for later tokens is not to be found there
            settings = settings | {"past_key_values": None}
        mine = self.watch.probing
        self.watch.probing = True
        try:
            results: list[Tensor] = []
            grid = None
            everybody = torch.ones_like(self.routing.mask)
            for chosen in (None, *range(gate.experts)):
                alone = ConstantGate([float(expert == chosen) for expert in range(gate.experts)])
                # a row's weights, for a graph may still hold those of before
                self.routing.keep(alone(None, everybody)[None])
                result = self.base(*inputs, **settings)
                if isinstance(result, tuple):
                    result = cast(tuple[Any, ...], result)[0]
                tokens, grid = as_tokens(cast(Tensor, getattr(result, "sample", result)))
                results.append(tokens.float())
        finally:
            self.watch.probing = mine
        return torch.stack(results[1:]) - results[0], grid
