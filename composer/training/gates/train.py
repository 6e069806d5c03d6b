"""Training gates, from frozen experts to the written file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from PIL import Image

from composer.clock import Clock
from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.denoise import latent_shape
from composer.diffusion.model import Model
from composer.diffusion.regions import Regions, Trigger, regions_of
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.diffusion.samplers import check_steps
from composer.errors import ComposerError
from composer.experts import Expert
from composer.files import check_writable
from composer.fusions.gate_file import GateFile, gate_sizes, gate_tensors, gated
from composer.mixture import GateSettings, LearnedGate, Mixture, attach
from composer.mixture.build import new_gates
from composer.training.core import Diverged
from composer.training.gates import sampling
from composer.training.gates.checkpoint import check_checkpoint, load_checkpoint, save_checkpoint
from composer.training.gates.judges import FIGURES, Judged
from composer.training.gates.paper import ClipGuidance
from composer.training.gates.prompts import check_prompts
from composer.training.gates.settings import GateProgress, GateTraining
from composer.training.gates.trainer import GateObjective, GateTrainer
from composer.training.processes import any_process, join_processes

PREVIEW_STEPS = 12
RECOMMENDED = GateSettings(activation="free", time=True, bias=True)
"""Any weights, for each picture and step; where figures stand side by side, its input is placed."""
PAPER = GateSettings(reduce="flatten", activation="softmax")
"""MoLE's gate (arXiv 2404.13628, equations 9 to 11)."""
OF_ONE = GateSettings(activation="softmax")
"""For a single expert: the only share of a softmax is exactly 1, so there is nothing to learn."""


def train_gates(
    model: Model,
    experts: Sequence[Expert],
    config: GateTraining,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[GateProgress]:
    """Train gates over frozen experts (MoLE, arXiv 2404.13628) and write one gate file.

    Wrong settings, experts or prompts raise ComposerError here, before the first report. The last
    report has stage "saved" and the path. When cancelled, the reports end without it, and the
    state to resume from is kept if `config.checkpoint_every` asks for one. However it ends, the
    model is as it was, bit for bit. Raises Diverged after three steps in a row without a finite
    loss; the last good gates are then in the file.

    A single expert has no other to be weighed against: whatever `config` asks for, its gates give
    exactly 1 everywhere, and nothing is learnt.
    """
    if not experts:
        raise ComposerError("There is no LoRA to train gates for: choose at least one.")
    if model.dtype == torch.float16:
        raise ComposerError(
            f"{model.name} is loaded in float16, in which small gradients vanish: load it in"
            " float32 to train, or in bfloat16."
        )
    names = [expert.name for expert in experts]
    if len(set(names)) < len(names):
        raise ComposerError("Two LoRAs have the same name: rename one of the files.")
    check_writable(config.output)
    check_steps(sampling.STEPS, model.scheduler_config)
    if len(experts) == 1:
        config = dataclasses.replace(config, steps=0, resume=False)
    processes = join_processes()
    check_checkpoint(model, experts, config, processes)
    check_prompts(model, names, config)
    with _attached(model, experts, config) as mixture:
        if not any(_governed(mixture, config, unit) for unit in mixture.units):
            raise ComposerError(
                "These LoRAs change nothing in the U-Net, where the gates are to stand: choose "
                "other LoRAs."
            )
    return _train(model, experts, config, processes, cancelled)


def _attached(model: Model, experts: Sequence[Expert], config: GateTraining) -> Mixture:
    sites = {expert.name: expert.sites for expert in experts}
    return attach(model.models, sites, granularity=config.granularity)


def _train(
    model: Model,
    experts: Sequence[Expert],
    config: GateTraining,
    processes: Any,
    cancelled: Callable[[], bool],
) -> Iterator[GateProgress]:
    with _attached(model, experts, config) as mixture, _frozen(model, config):
        objective: GateObjective | None = None
        if config.steps:  # gates that stay where they begin learn from nothing
            preparing = _prepare(model, mixture, experts, config, processes)
            objective = yield from _reported(preparing, cancelled)
            if objective is None:
                return
        # constant where there is no gate: every expert has weight 1
        mixture.set_weights(dict.fromkeys(mixture.names, 1.0))
        mixture.set_gates(_gates(model, mixture, experts, config))
        trainer = GateTrainer(
            model=model, mixture=mixture, objective=objective, config=config, processes=processes
        )
        if config.resume and config.checkpoint.is_file():
            load_checkpoint(config.checkpoint, trainer, experts)
        try:
            yield from _steps(trainer, experts, cancelled)
        except Diverged:
            if processes.is_main_process and trainer.step > trainer.skipped:
                _write(trainer, experts)
            raise
        if trainer.step < config.steps:  # cancelled
            return
        if processes.is_main_process:
            _write(trainer, experts)
            config.checkpoint.unlink(missing_ok=True)
        processes.wait_for_everyone()
        yield _report(trainer, stage="saved", path=config.output)


@contextmanager
def _frozen(model: Model, config: GateTraining) -> Generator[None]:
    """Meanwhile no weight of the model wants a gradient, and it saves memory if it is asked to."""
    parts = (*model.models.values(), model.vae)
    before = {p: p.requires_grad for part in parts for p in part.parameters()}
    checkpointed = bool(model.unet.is_gradient_checkpointing)
    try:
        for parameter in before:
            parameter.requires_grad_(False)
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)
        if config.gradient_checkpointing and not checkpointed:
            model.unet.disable_gradient_checkpointing()


def _prepare(
    model: Model,
    mixture: Mixture,
    experts: Sequence[Expert],
    config: GateTraining,
    processes: Any,
) -> Generator[tuple[int, int], None, GateObjective]:
    """The objective, once each expert has drawn alone; yields (steps done, in all)."""
    lanes = config.accumulation * processes.num_processes
    if config.paper:
        guidance = yield from ClipGuidance.prepare(model, mixture, config)
        guidance.lanes = lanes
        return guidance
    roles = {expert.name: expert.info.role for expert in experts}
    judged = yield from Judged.prepare(model, mixture, config, roles)
    judged.lanes = lanes
    if gate_for(config, list(roles.values())).input == "placed":
        triggers = {e.name: Trigger(words=e.info.trigger, role=e.info.role) for e in experts}
        judged.regions = Regions(model, mixture, triggers)
    return judged


def gate_for(config: GateTraining, roles: Sequence[str]) -> GateSettings:
    """The gates of the U-Net over experts of these roles."""
    if len(roles) == 1:
        return OF_ONE
    if config.paper:
        return dataclasses.replace(
            PAPER, input="experts" if config.input == "experts" else "hidden"
        )
    figures = sum(role in FIGURES for role in roles)
    placed = config.input == "placed" or (config.input == "auto" and figures > 1)
    return dataclasses.replace(RECOMMENDED, input="placed" if placed else "hidden")


Made = TypeVar("Made")


def _reported(
    making: Generator[tuple[int, int], None, Made], cancelled: Callable[[], bool]
) -> Generator[GateProgress, None, Made | None]:
    """What is made in the end, or None when cancelled."""
    clock = Clock()
    while not cancelled():
        try:
            done, total = next(making)
        except StopIteration as end:
            return end.value
        clock.total = total
        left = clock.seconds_left(done)
        with clock.paused():
            yield GateProgress(stage="alone", step=done, total=total, seconds_left=left)
    making.close()
    return None


def _settings(experts: Sequence[Expert], config: GateTraining) -> dict[str, GateSettings]:
    """Of the gates, by part of the model; a text encoder knows no timestep."""
    gate = gate_for(config, [expert.info.role for expert in experts])
    return {"unet": gate, "text_encoder": gate} if config.paper else {"unet": gate}


def _gates(
    model: Model, mixture: Mixture, experts: Sequence[Expert], config: GateTraining
) -> dict[str, LearnedGate]:
    """New gates as they begin: free ones give the plain sum, a softmax even shares."""

    @torch.no_grad()
    def once() -> None:
        text = encode_prompts(model, "", None).positive
        latents = torch.zeros(1, *latent_shape(model), device=model.device, dtype=model.dtype)
        model.unet(latents, 0, encoder_hidden_states=text)

    made = new_gates(mixture, _settings(experts, config), once, seed=config.seed)
    gates = {name: gate for name, gate in made.items() if _governed(mixture, config, name)}
    for gate in gates.values():
        if gate.b is not None:
            gate.start_at([1.0] * gate.experts)
    return gates


def _governed(mixture: Mixture, config: GateTraining, unit: str) -> bool:
    """Whether a gate is to stand in this unit: from the depth on, and always in the last one."""
    plan = mixture.units[unit].plan
    if plan.part != "unet":
        return config.paper
    names = [name for name, other in mixture.units.items() if other.plan.part == "unet"]
    return unit == names[-1] or mixture.depth_of(unit) >= config.depth


def _steps(
    trainer: GateTrainer, experts: Sequence[Expert], cancelled: Callable[[], bool]
) -> Iterator[GateProgress]:
    config, main = trainer.config, trainer.processes.is_main_process
    clock = Clock(trainer.step, config.steps)
    while trainer.step < config.steps and not any_process(trainer.processes, cancelled()):
        loss = trainer.advance()
        every = config.checkpoint_every
        if every and trainer.step % every == 0 and trainer.step < config.steps:
            save_checkpoint(config.checkpoint, trainer, experts)
        preview = None
        if main and config.preview_every and trainer.step % config.preview_every == 0:
            with clock.paused():
                preview = _preview(trainer, experts)
        left = clock.seconds_left(trainer.step)
        with clock.paused():
            yield _report(trainer, loss=loss, preview=preview, seconds_left=left)
    if config.checkpoint_every and trainer.step < config.steps:
        save_checkpoint(config.checkpoint, trainer, experts)


def _report(trainer: GateTrainer, **more: Any) -> GateProgress:
    values: dict[str, Any] = {"stage": "train", **more}
    return GateProgress(
        step=trainer.step,
        total=trainer.config.steps,
        losses=dict(trainer.smoothed),
        entropy=trainer.entropy,
        skipped=trainer.skipped,
        **values,
    )


def _write(trainer: GateTrainer, experts: Sequence[Expert]) -> None:
    config, model = trainer.config, trainer.model
    settings: Mapping[str, GateSettings] = _settings(experts, config)
    GateFile(
        model=model.name,
        model_hash=model.hash,
        experts=gated(experts),
        granularity=config.granularity,
        settings=settings,
        tensors=gate_tensors(trainer.mixture),
        sizes=gate_sizes(trainer.mixture),
        training={
            "settings": config.to_json() | {"output": config.output.name},
            "steps": trainer.step,
            "skipped": trainer.skipped,
            "losses": dict(trainer.smoothed),
            "entropy": trainer.entropy,
        },
    ).write(config.output)


def _preview(trainer: GateTrainer, experts: Sequence[Expert]) -> Image.Image:
    """A picture with the gates as they are, always of the same prompt and from the same seed."""
    config = trainer.config
    request = Request(
        prompt=config.preview_prompt or config.prompts[0],
        seed=config.seed,
        steps=PREVIEW_STEPS,
        cfg_scale=sampling.CFG_SCALE,
    )
    regions = regions_of(trainer.model, trainer.mixture, gated(experts))
    events = generate(trainer.model, request, regions=regions)
    return next(event.image for event in events if isinstance(event, Picture))
