"""What the tests of gate training share: two tiny experts and a training of seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from composer.diffusion.model import Model
from composer.experts import Expert
from composer.fusions.gate_file import read_gates
from composer.mixture import Mixture
from composer.mixture.build import new_gates
from composer.training.gates.settings import GateProgress, GateTraining
from composer.training.gates.train import gate_for, train_gates

STEPS = 6


def training(folder: Path, **settings: Any) -> GateTraining:
    """The default training but for its prompts and its size."""
    values: dict[str, Any] = {
        "output": folder / "gates.safetensors",
        "prompts": ("ada in ink", "ada, ink"),
        "alone": {"ada": ("ada",), "ink": ("cat in ink", "ink")},
        "steps": STEPS,
        "batch_size": 4,
        "checkpoint_every": 4,
    }
    return GateTraining(**{**values, **settings})


def run(
    model: Model, experts: list[Expert], config: GateTraining, *, stop_after: int | None = None
) -> dict[int, GateProgress]:
    """The report of each step of the optimiser that was made."""
    made: dict[int, GateProgress] = {}
    reports = train_gates(
        model,
        experts,
        config,
        cancelled=lambda: stop_after in made,
    )
    for report in reports:
        if report.stage == "train":
            made[report.step] = report
    return made


Made = TypeVar("Made")


def finished(making: Generator[Any, None, Made]) -> Made:
    """What a generator returns in the end."""
    while True:
        try:
            next(making)
        except StopIteration as end:
            return end.value


def put_gates_in(model: Model, mixture: Mixture, config: GateTraining) -> list[torch.Tensor]:
    """New gates for every unit of the U-Net, and as published of the text encoder; their
    parameters. They give the plain sum, or even shares."""

    def once() -> None:
        latents = torch.zeros(1, model.latent_channels, 8, 8)
        model.unet(latents, 5, torch.zeros(1, model.token_limit, model.cross_attention_dim))
        model.models["text_encoder"](torch.zeros(1, model.token_limit, dtype=torch.long))

    mixture.set_weights(dict.fromkeys(mixture.names, 1.0))
    settings = dict.fromkeys(
        ("unet", "text_encoder") if config.paper else ("unet",),
        gate_for(config, [""] * len(mixture.names)),
    )
    gates = new_gates(mixture, settings, once, seed=0)
    mixture.set_gates(gates)
    return [p for gate in gates.values() for p in gate.parameters()]


def assert_every_gate_learns(
    model: Model, experts: list[Expert], config: GateTraining
) -> dict[str, set[str]]:
    """Train, and compare the file with the one of no steps: in each gate, all that belongs to each
    expert has moved. Returns the names of that, by unit. The temperature may be at its bound."""
    run(model, experts, config)
    trained = read_gates(config.output).tensors
    beginning = config.output.with_name("beginning.safetensors")
    run(model, experts, dataclasses.replace(config, output=beginning, steps=0))
    began = read_gates(beginning).tensors
    assert trained.keys() == began.keys() and trained
    learnt: dict[str, set[str]] = {}
    for unit, tensors in trained.items():
        learnt[unit] = tensors.keys() & {"e", "b", "clock"}
        for name in learnt[unit]:
            moved = (tensors[name] - began[unit][name]).reshape(len(experts), -1)
            assert bool((moved.abs().amax(1) > 1e-6).all()), f"{unit}.{name}: {moved}"
    return learnt


def along_the_gradient(
    loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], size: float
) -> tuple[float, float]:
    """How much a step of this size down the gradient changes the loss, and how much it should."""
    before = loss()
    gradients = torch.autograd.grad(before, parameters, allow_unused=True)
    expected = 0.0
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= size * gradient
                expected -= size * float(gradient.square().sum())
    return float((loss() - before).detach()), expected


def state_of(model: Model) -> dict[str, Any]:
    """Modules, weights and what wants a gradient, of all parts."""
    return {
        f"{part}.{name}": (id(p), p.requires_grad, p.detach().clone())
        for part, module in model.models.items()
        for name, p in module.named_parameters()
    }


def assert_untouched(model: Model, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert after.keys() == before.keys()
    for name, (identity, wanted, value) in after.items():
        assert (identity, wanted) == before[name][:2]
        assert torch.equal(value, before[name][2])
