"""Training gates, from frozen experts to the written file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.model import Model
from composer.diffusion.regions import Regions, Voice, regions_of
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.errors import ComposerError
from composer.experts import Expert
from composer.fusions.gate_file import GateFile, gate_sizes, gate_tensors, gated
from composer.mixture import GateSettings, LearnedGate, Mixture, RegionGate, attach
from composer.training.gates.build import decided, new_gates, of_words
from composer.training.gates.checkpoint import check_checkpoint, load_checkpoint, save_checkpoint
from composer.training.gates.clip import ClipGuidance
from composer.training.gates.closed_form import Products, solve
from composer.training.gates.config import GateTraining
from composer.training.gates.distill import Distillation
from composer.training.gates.judged import Judged
from composer.training.gates.memory import AT_ONCE, COMPOSED, Memory, check_prompts, remember
from composer.training.gates.progress import GateProgress
from composer.training.gates.reading import Readings
from composer.training.gates.teachers import Teachers, one_hot, speak
from composer.training.gates.trainer import GateTrainer
from composer.training.output import check_writable
from composer.training.processes import join_processes
from composer.training.progress import Clock
from composer.training.trainer import Diverged

PREVIEW_STEPS = 12
START_ROWS = 24
READ_ROWS = 192


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
    gate = decided(config.gate, [expert.info.role for expert in experts])
    config = dataclasses.replace(config, gate=gate)
    processes = join_processes()
    check_checkpoint(model, experts, config, processes)
    mixture = attach(
        model.models, {e.name: e.sites for e in experts}, granularity=config.granularity
    )
    try:
        check_prompts(model, mixture, config)
        if not any(_governed(mixture, config, unit) for unit in mixture.units):
            raise ComposerError(
                "These LoRAs change nothing in the U-Net, where the gates are to stand: train "
                "gates for the text encoder too, or choose other LoRAs."
            )
    except BaseException:
        mixture.detach()
        raise
    return _train(model, experts, mixture, config, processes, cancelled)


def _train(
    model: Model,
    experts: Sequence[Expert],
    mixture: Mixture,
    config: GateTraining,
    processes: Any,
    cancelled: Callable[[], bool],
) -> Iterator[GateProgress]:
    parts = (*model.models.values(), model.vae)
    frozen = {p: p.requires_grad for part in parts for p in part.parameters()}
    checkpointed = bool(model.unet.is_gradient_checkpointing)
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        guidance: ClipGuidance | Judged | None = None
        if config.objective == "clip":
            guidance = yield from _taught(ClipGuidance.prepare(model, mixture, config), cancelled)
            if guidance is None:
                return
        if config.objective == "judged":
            guidance = yield from _taught(Judged.prepare(model, mixture, config), cancelled)
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
        if config.start == "sum" or (config.start == "solved" and config.gate.hears):
            for gate in gates.values():
                if not isinstance(gate, RegionGate):  # that starts as what it hears
                    gate.start_at([1.0] * gate.experts)
        elif config.start == "solved":
            if config.gate.reduce == "tokens" and memory.regions is not None:
                yield from _read(model, mixture, memory, gates)
            else:
                yield from _start(model, mixture, config, memory, gates)
        # constant where there is no gate: every expert speaks with weight 1
        mixture.set_weights(dict.fromkeys(mixture.names, 1.0))
        mixture.set_gates(gates)
        if guidance is not None and mixture.hears_regions:
            guidance.regions = regions
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
        return dataclasses.replace(config, teacher="changes", trajectories=1, teacher_steps=1)
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
    while True:
        try:
            done, total = next(sampling)
        except StopIteration as end:
            return end.value
        if cancelled():
            return None
        clock = clock or Clock(done - 1, total)
        yield GateProgress(
            stage="teach", step=done, total=total, seconds_left=clock.seconds_left(done)
        )


def _gates(
    model: Model, mixture: Mixture, config: GateTraining, memory: Memory
) -> dict[str, LearnedGate]:
    settings: Mapping[str, GateSettings] = {"unet": config.gate}
    if config.text_encoder:
        settings = {**settings, "text_encoder": of_words(config.gate)}

    def run() -> None:
        _pass(model, mixture, memory, [0], None)

    made = new_gates(mixture, settings, run, seed=config.seed)
    return {n: g for n, g in made.items() if _governed(mixture, config, n)}


def _governed(mixture: Mixture, config: GateTraining, unit: str) -> bool:
    """Whether a gate is to stand in this unit: from the depth on, and always in the last one."""
    plan = mixture.units[unit].plan
    if plan.part != "unet":
        return config.text_encoder
    names = [name for name, other in mixture.units.items() if other.plan.part == "unet"]
    return unit == names[-1] or mixture.depth_of(unit) >= config.depth


def _start(
    model: Model,
    mixture: Mixture,
    config: GateTraining,
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
            _pass(model, mixture, memory, rows, expert)

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
def _pass(
    model: Model, mixture: Mixture, memory: Memory, rows: Sequence[int], expert: int | None
) -> None:
    """The model once over some rows of the memory, one expert alone or none."""
    speak(mixture, one_hot(mixture, [expert]))
    text = [encode_prompts(model, memory.prompts[row], None).positive for row in rows]
    chosen = list(rows)
    model.unet(
        memory.latents[chosen].to(model.device, model.dtype),
        memory.timesteps[chosen].to(model.device),
        encoder_hidden_states=torch.cat(text),
    )


def _steps(
    trainer: GateTrainer, experts: Sequence[Expert], cancelled: Callable[[], bool]
) -> Iterator[GateProgress]:
    config, main = trainer.config, trainer.processes.is_main_process
    clock = Clock(trainer.step, config.steps)
    while trainer.step < config.steps and not cancelled():
        loss = trainer.advance()
        every = config.checkpoint_every
        if main and every and trainer.step % every == 0 and trainer.step < config.steps:
            save_checkpoint(config.checkpoint, trainer, experts)
        preview = None
        if main and config.preview_every and trainer.step % config.preview_every == 0:
            with clock.paused():
                preview = _preview(trainer, experts)
        yield _report(
            trainer, loss=loss, preview=preview, seconds_left=clock.seconds_left(trainer.step)
        )
    if main and config.checkpoint_every and trainer.step < config.steps:
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
    """What the gates draw now for the preview's prompt, always from the same seed."""
    config = trainer.config
    request = Request(
        prompt=config.preview_prompt or config.prompts[0],
        seed=config.seed,
        steps=PREVIEW_STEPS,
        cfg_scale=config.cfg_scale,
    )
    regions = regions_of(trainer.model, trainer.mixture, gated(experts))
    events = generate(trainer.model, request, regions=regions)
    return next(event.image for event in events if isinstance(event, Picture))
