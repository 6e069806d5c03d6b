"""Where gates begin: at the plain sum, at the closed form, or as what they hear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.model import Model
from composer.mixture import LearnedGate, Mixture, RegionGate
from composer.training.gates.closed_form import Products, solve
from composer.training.gates.config import GateTraining
from composer.training.gates.memory import AT_ONCE, COMPOSED, Memory
from composer.training.gates.progress import GateProgress
from composer.training.gates.reading import Readings
from composer.training.gates.teachers import Teachers, alone, speak, together

START_ROWS = 24
READ_ROWS = 192


def put_at_start(
    model: Model,
    mixture: Mixture,
    config: GateTraining,
    memory: Memory,
    gates: Mapping[str, LearnedGate],
) -> Iterator[GateProgress]:
    """Set the gates as `config.start` says; gates are ready when the reports have ended."""
    if config.start == "sum" or (config.start == "solved" and config.gate.hears):
        for gate in gates.values():
            if not isinstance(gate, RegionGate):  # that starts as what it hears
                gate.start_at([1.0] * gate.experts)
    elif config.start == "solved":
        if config.gate.reduce == "tokens" and memory.regions is not None:
            yield from _read(model, mixture, memory, gates)
        else:
            yield from _solve(model, mixture, memory, gates)


def _solve(
    model: Model,
    mixture: Mixture,
    memory: Memory,
    gates: Mapping[str, LearnedGate],
) -> Iterator[GateProgress]:
    """The closed-form solution into the biases."""
    seen: dict[str, Products] = {}
    for index, name in enumerate(mixture.names):
        rows = memory.rows_of(name) or list(range(len(memory.groups)))
        spread = rows[:: max(len(rows) // START_ROWS, 1)][:START_ROWS]
        products = Products(mixture)

        def run(rows: list[int] = spread, expert: int = index) -> None:
            pass_once(model, mixture, memory, rows, expert)

        products.watch(run)
        seen[name] = products
        yield GateProgress(stage="start", step=index + 1, total=len(mixture.names))
    for unit, weights in solve(mixture, seen).items():
        if unit in gates:
            gates[unit].start_at(weights)


def _read(
    model: Model, mixture: Mixture, memory: Memory, gates: Mapping[str, LearnedGate]
) -> Iterator[GateProgress]:
    """What the gates see, fitted to the maps that the teacher heard."""
    assert memory.regions is not None
    rows = memory.rows_of(COMPOSED)
    rows = rows[:: max(len(rows) // READ_ROWS, 1)][:READ_ROWS]
    teachers = Teachers(model, mixture)
    readings = Readings(mixture, {n: g for n, g in gates.items() if n.startswith("unet")})
    batches = [rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE)]
    for done, some in enumerate(batches, start=1):
        maps = memory.regions[some].to(model.device)
        latents, timesteps = (
            each[some].to(model.device) for each in (memory.latents, memory.timesteps)
        )
        prompts = [[""] * len(some), [memory.prompts[row] for row in some]]

        def run(
            latents: Tensor = latents,
            timesteps: Tensor = timesteps,
            prompts: list[list[str]] = prompts,
            maps: Tensor = maps,
        ) -> None:
            teachers.ask_in_places(latents, timesteps.repeat(2), prompts, maps)

        readings.watch(run, maps)
        yield GateProgress(stage="start", step=done, total=len(batches))
    readings.fit()


@torch.no_grad()
def pass_once(
    model: Model, mixture: Mixture, memory: Memory, rows: Sequence[int], expert: int | None
) -> None:
    """The model once over some rows of the memory, one expert alone or none."""
    speak(mixture, together(mixture, [alone(expert)]))
    text = [encode_prompts(model, memory.prompts[row], None).positive for row in rows]
    chosen = list(rows)
    model.unet(
        memory.latents[chosen].to(model.device, model.dtype),
        memory.timesteps[chosen].to(model.device),
        encoder_hidden_states=torch.cat(text),
    )
