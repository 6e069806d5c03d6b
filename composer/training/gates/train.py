"""Training gates, from frozen experts to the written file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image

from composer.diffusion.model import Model
from composer.diffusion.regions import Regions, Voice, regions_of
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.diffusion.samplers import check_steps
from composer.errors import ComposerError
from composer.experts import Expert
from composer.fusions.gate_file import GateFile, gate_sizes, gate_tensors, gated
from composer.mixture import GateSettings, LearnedGate, Mixture, attach
from composer.training.gates.build import decided, new_gates, of_words
from composer.training.gates.checkpoint import check_checkpoint, load_checkpoint, save_checkpoint
from composer.training.gates.clip import ClipGuidance
from composer.training.gates.config import GateTraining
from composer.training.gates.distill import Distillation
from composer.training.gates.judged import Judged
from composer.training.gates.memory import AT_ONCE, Memory, check_prompts, remember
from composer.training.gates.progress import GateProgress
from composer.training.gates.single import of_one
from composer.training.gates.start import pass_once, put_at_start
from composer.training.gates.trainer import GateTrainer
from composer.training.output import check_writable
from composer.training.processes import join_processes, told_to_any
from composer.training.progress import Clock
from composer.training.trainer import Diverged

PREVIEW_STEPS = 12


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

    A single expert has nobody to be weighed against: whatever `config` asks for, its gates say
    exactly 1 everywhere, and nothing is learnt (`composer.training.gates.single`).
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
    check_steps(config.teacher_steps, model.scheduler_config)
    gate = decided(config.gate, [expert.info.role for expert in experts])
    config = dataclasses.replace(config, gate=gate)
    if len(experts) == 1:
        config = of_one(config)
    processes = join_processes()
    check_checkpoint(model, experts, config, processes)
    with _attached(model, experts, config) as mixture:
        check_prompts(model, mixture, _lessons_of(config))
        if not any(_governed(mixture, config, unit) for unit in mixture.units):
            raise ComposerError(
                "These LoRAs change nothing in the U-Net, where the gates are to stand: train "
                "gates for the text encoder too, or choose other LoRAs."
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
    mixture = _attached(model, experts, config)
    parts = (*model.models.values(), model.vae)
    frozen = {p: p.requires_grad for part in parts for p in part.parameters()}
    checkpointed = bool(model.unet.is_gradient_checkpointing)
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        guidance: ClipGuidance | Judged | None = None
        # gates that stay where they begin learn from nobody
        if config.objective == "clip" and config.steps:
            guidance = yield from _taught(ClipGuidance.prepare(model, mixture, config), cancelled)
            if guidance is None:
                return
        if config.objective == "judged" and config.steps:
            roles = {expert.name: expert.info.role for expert in experts}
            judging = Judged.prepare(model, mixture, config, roles)
            guidance = yield from _taught(judging, cancelled)
            if guidance is None:
                return
        learnt = _lessons_of(config)
        regions = None
        if config.gate.hears or learnt.teacher == "regions":
            voices = {e.name: Voice(trigger=e.info.trigger, role=e.info.role) for e in experts}
            regions = Regions(model, mixture, voices)
        memory = yield from _taught(remember(model, mixture, learnt, regions), cancelled)
        if memory is None:
            return
        gates = _gates(model, mixture, config, memory)
        for report in put_at_start(model, mixture, config, memory, gates):
            yield report
            if cancelled():
                return
        # constant where there is no gate: every expert speaks with weight 1
        mixture.set_weights(dict.fromkeys(mixture.names, 1.0))
        mixture.set_gates(gates)
        if guidance is not None:
            guidance.lanes = config.accumulation * processes.num_processes
            guidance.regions = regions if mixture.hears_regions else None
        objective = guidance or Distillation(model, mixture, memory, config)
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
    finally:
        mixture.detach()
        for parameter, before in frozen.items():
            parameter.requires_grad_(before)
        if config.gradient_checkpointing and not checkpointed:
            model.unet.disable_gradient_checkpointing()


def _lessons_of(config: GateTraining) -> GateTraining:
    """What is asked of the teachers: gates that are not distilled learn from their own pictures,
    and take from teachers their start; without one, no more than something of the right size."""
    if config.objective == "distill":
        return config
    if config.gate.hears or config.start != "solved":
        one = dataclasses.replace(config, teacher="changes", trajectories=1, teacher_steps=1)
        return dataclasses.replace(one, keep=0.0, compose=1.0, rest=0.0)
    if config.objective == "judged":
        few = min(config.trajectories, AT_ONCE)
        return dataclasses.replace(config, teacher="changes", trajectories=few)
    return config


Lesson = TypeVar("Lesson")


def _taught(
    sampling: Generator[tuple[int, int], None, Lesson], cancelled: Callable[[], bool]
) -> Generator[GateProgress, None, Lesson | None]:
    """What samplings of the teachers come to, or None when cancelled."""
    clock: Clock | None = None
    while not cancelled():
        try:
            done, total = next(sampling)
        except StopIteration as end:
            return end.value
        clock = clock or Clock(done - 1, total)
        yield GateProgress(
            stage="teach", step=done, total=total, seconds_left=clock.seconds_left(done)
        )
    return None


def _gates(
    model: Model, mixture: Mixture, config: GateTraining, memory: Memory
) -> dict[str, LearnedGate]:
    settings: Mapping[str, GateSettings] = {"unet": config.gate}
    if config.text_encoder:
        settings = {**settings, "text_encoder": of_words(config.gate)}

    def run() -> None:
        pass_once(model, mixture, memory, [0], None)

    made = new_gates(mixture, settings, run, seed=config.seed)
    return {n: g for n, g in made.items() if _governed(mixture, config, n)}


def _governed(mixture: Mixture, config: GateTraining, unit: str) -> bool:
    """Whether a gate is to stand in this unit: from the depth on, and always in the last one."""
    plan = mixture.units[unit].plan
    if plan.part != "unet":
        return config.text_encoder
    names = [name for name, other in mixture.units.items() if other.plan.part == "unet"]
    return unit == names[-1] or mixture.depth_of(unit) >= config.depth


def _steps(
    trainer: GateTrainer, experts: Sequence[Expert], cancelled: Callable[[], bool]
) -> Iterator[GateProgress]:
    config, main = trainer.config, trainer.processes.is_main_process
    clock = Clock(trainer.step, config.steps)
    while trainer.step < config.steps and not told_to_any(trainer.processes, cancelled()):
        loss = trainer.advance()
        every = config.checkpoint_every
        if every and trainer.step % every == 0 and trainer.step < config.steps:
            save_checkpoint(config.checkpoint, trainer, experts)
        preview = None
        if main and config.preview_every and trainer.step % config.preview_every == 0:
            with clock.paused():
                preview = _preview(trainer, experts)
        yield _report(
            trainer, loss=loss, preview=preview, seconds_left=clock.seconds_left(trainer.step)
        )
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
    parts = {unit.partition(".")[0] for unit in trainer.mixture.gates}
    settings = {
        part: config.gate if part == "unet" else of_words(config.gate) for part in sorted(parts)
    }
    told = config.to_json() | {"output": config.output.name}
    GateFile(
        model=model.name,
        model_hash=model.hash,
        experts=gated(experts),
        granularity=config.granularity,
        settings=settings,
        tensors=gate_tensors(trainer.mixture),
        sizes=gate_sizes(trainer.mixture),
        training={
            "settings": told,
            "steps": trainer.step,
            "skipped": trainer.skipped,
            "losses": dict(trainer.smoothed),
            "entropy": trainer.entropy,
        },
    ).write(config.output)


def _preview(trainer: GateTrainer, experts: Sequence[Expert]) -> Image.Image:
    """What the gates draw now for the preview's prompt, always from the same seed; where none is
    given, for the first prompt that there is: one that names all experts, one alone, or none."""
    config = trainer.config
    alone = [prompt for own in config.alone.values() for prompt in own]
    known = [*config.prompts, *alone, *config.neutral]  # of what is learnt, at least one
    request = Request(
        prompt=config.preview_prompt or known[0],
        seed=config.seed,
        steps=PREVIEW_STEPS,
        cfg_scale=config.cfg_scale,
    )
    regions = regions_of(trainer.model, trainer.mixture, gated(experts))
    events = generate(trainer.model, request, regions=regions)
    return next(event.image for event in events if isinstance(event, Picture))
