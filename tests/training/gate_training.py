"""What the tests of gate training share: two tiny experts and a training of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_loras import write_lora

from composer.diffusion.model import Model
from composer.experts import Expert, ModuleNames, read_expert
from composer.mixture import GateSettings
from composer.training.gates import GateProgress, GateTraining, train_gates

BETTER = GateSettings(activation="free", normalise="layer", time=True, bias=True)
STEPS = 6


def experts_for(model: Model, folder: Path, *names: str) -> list[Expert]:
    """Experts of different factors, read from files as users have them."""
    modules = ModuleNames.of(model.models, model=model.name)
    return [
        read_expert(write_lora(folder / f"{name}.safetensors", seed=seed), modules, name=name)
        for seed, name in enumerate(names or ("ada", "ink"))
    ]


def training(folder: Path, **settings: Any) -> GateTraining:
    values: dict[str, Any] = {
        "output": folder / "gates.safetensors",
        "prompts": ("ada in ink", "ada, ink"),
        "alone": {"ada": ("ada",), "ink": ("cat in ink", "ink")},
        "neutral": ("cat",),
        "gate": BETTER,
        "objective": "distill",
        "teacher": "changes",
        "keep": 1.0,
        "rest": 0.5,
        "trajectories": 3,
        "teacher_steps": 3,
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
