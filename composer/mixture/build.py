"""New gates for a mixture, of the sizes that its units turn out to have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from composer.errors import ComposerError
from composer.mixture.learned import GateSettings, LearnedGate
from composer.mixture.mixture import Mixture
from composer.mixture.seen import as_tokens


@dataclass(frozen=True, kw_only=True)
class Size:
    """What goes into a unit and comes out of it, (tokens, width) each, and the time's width."""

    into: tuple[int, int]
    out: tuple[int, int]
    time: int | None


def new_gates(
    mixture: Mixture, settings: Mapping[str, GateSettings], run: Callable[[], Any], *, seed: int
) -> dict[str, LearnedGate]:
    """A gate for each unit of the parts in `settings`.

    run: calls the models once, as they are called later, so that sizes are seen and not assumed.

    Raises:
        ComposerError: a unit has no place for a gate, or a gate of these settings cannot be there.
    """
    gates: dict[str, LearnedGate] = {}
    sizes = _measure(mixture, run)
    with cast(Any, torch.random).fork_rng(devices=[]):
        cast(Any, torch).manual_seed(seed)
        for name, unit in mixture.units.items():
            given = settings.get(unit.plan.part)
            if given is None or name not in sizes:
                continue
            size = sizes[name]
            if given.input == "experts" and unit.plan.whole:
                raise ComposerError(
                    f"The gate of all of {name} is asked before any expert has run: let it see the "
                    "hidden state, or choose the granularity block, layer or matrix."
                )
            tokens, width = size.out if given.input == "experts" else size.into
            gates[name] = LearnedGate(
                given if size.time is not None else replace(given, time=False),
                width,
                unit.present,
                time_width=size.time,
                tokens=tokens if given.reduce == "flatten" else None,
            )
    return gates


@torch.no_grad()
def _measure(mixture: Mixture, run: Callable[[], Any]) -> dict[str, Size]:
    """Sizes by unit, of those that ran."""
    sizes: dict[str, Size] = {}
    handles: list[Any] = []

    def look(name: str, entry: bool) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, given: Mapping[str, Any], output: Any) -> None:
            came = inputs[0] if inputs else given.get("hidden_states")
            first = cast(Any, output)[0] if isinstance(output, tuple) else output
            went = cast(Tensor, getattr(first, "sample", first))
            seen = went if entry else cast(Tensor, came)
            time = module.watch.time
            sizes[name] = Size(
                into=_tokens_and_width(seen),
                out=_tokens_and_width(went),
                time=None if time is None else int(time.shape[-1]),
            )

        return hook

    for name, unit in mixture.units.items():
        if unit.module is not None:
            hook = look(name, unit.plan.entry)
            handles.append(cast(Any, unit.module).register_forward_hook(hook, with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _tokens_and_width(hidden: Tensor) -> tuple[int, int]:
    tokens, _ = as_tokens(hidden)
    return tokens.shape[1], tokens.shape[2]
