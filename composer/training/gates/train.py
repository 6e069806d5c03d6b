"""Training gates, from frozen experts to the written file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from composer.clock import Clock
from composer.diffusion.conditioning import encode_prompts
from composer.diffusion.denoise import latent_shape, predict
from composer.diffusion.lowvram import check_here
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
from composer.mixture.learned import TAU
from composer.precision import autocast
from composer.training.core import Learner, Trainer
from composer.training.gates import sampling
from composer.training.gates.judges import FIGURES, Judged
from composer.training.gates.losses import Batch, entropy
from composer.training.gates.paper import ClipGuidance
from composer.training.gates.prompts import check_prompts
from composer.training.gates.settings import GateProgress, GateTraining
from composer.training.processes import join_processes
from composer.training.state import check_state

PREVIEW_STEPS = 12
WARMUP = 10
"""Steps until the highest learning rate."""
RECOMMENDED = GateSettings(activation="free", time=True, bias=True)
"""Any weights, for each picture and step; where figures stand side by side, its input is placed."""
PAPER = GateSettings(reduce="flatten", activation="softmax")
"""MoLE's gate (arXiv 2404.13628, equations 9 to 11)."""
OF_ONE = GateSettings(activation="softmax")
"""For a single expert: the only share of a softmax is exactly 1, so there is nothing to learn."""


class GateObjective(Protocol):
    """What gates are trained for: `Judged`, or `ClipGuidance` as published."""

    def batch(self, number: int) -> Batch:
        """The loss of the `number`-th batch of the training, counted over all processes.

        A step of the training has as many batches as there are processes times what each
        accumulates; those at the same place of each step are one lane, which one process follows.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """What this process must keep, besides gates and step, to go on as if never stopped."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        ...


class GateTrainer(Trainer[GateProgress]):
    """Trains the learned gates of a mixture; nothing else gets a gradient.

    objective: None where no step is to be made.
    """

    reports: ClassVar = GateProgress

    def __init__(
        self,
        model: Model,
        mixture: Mixture,
        experts: Sequence[Expert],
        objective: GateObjective | None,
        config: GateTraining,
        processes: Any,
    ) -> None:
        parameters = {
            f"{unit}.{name}": parameter
            for unit, gate in mixture.learned_gates.items()
            for name, parameter in gate.named_parameters()
        }
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        learner = Learner(
            config=config,
            parameters=parameters,
            optimizer=torch.optim.AdamW(
                list(parameters.values()), lr=config.learning_rate, weight_decay=0.0
            ),
            total=config.steps,
            facts=_facts(model, experts),
            warmup=WARMUP,
            after=self._bound,
        )
        # of the largest map the model attends over
        tokens = (model.size // model.multiple) ** 2
        super().__init__([learner], processes, device=model.device, tokens=tokens)
        self.model, self.mixture, self.experts = model, mixture, experts
        self.objective, self.config = objective, config

    def loss(self, number: int) -> tuple[Tensor, dict[str, float]]:
        """The objective's."""
        assert self.objective is not None
        batch = self.objective.batch(number)
        return batch.loss, {"entropy": entropy(batch.weights), **batch.figures}

    def around(self) -> torch.autocast:
        """The model's products in bfloat16, where that is asked for; gates stay float32."""
        return autocast(self.config.precision, self.device.type)

    def look(self, learner: Learner) -> dict[str, Any]:
        """Where one is due, a picture with the gates as they are, always of the same prompt and
        from the same seed."""
        config = self.config
        if not config.preview_every or learner.step % config.preview_every:
            return {}
        request = Request(
            prompt=config.preview_prompt or config.prompts[0],
            seed=config.seed,
            steps=PREVIEW_STEPS,
            cfg_scale=sampling.CFG_SCALE,
        )
        regions = regions_of(self.model, self.mixture, gated(self.experts))
        events = generate(self.model, request, regions=regions)
        return {"preview": next(e.image for e in events if isinstance(e, Picture))}

    def details(self, learner: Learner) -> dict[str, Any]:
        """Smoothed losses by name, and the entropy of the last step."""
        losses = {name: mean for name, mean in learner.smoothed.items() if name != "entropy"}
        return {"losses": losses, "entropy": learner.figures.get("entropy")}

    def own(self) -> dict[str, Tensor]:
        return {} if self.objective is None else self.objective.state()

    def load_own(self, tensors: dict[str, Tensor]) -> None:
        assert self.objective is not None
        self.objective.load_state(tensors)

    def write(self, learner: Learner) -> dict[str, Any]:
        """The gate file."""
        config, model = self.config, self.model
        GateFile(
            model=model.name,
            model_hash=model.hash,
            experts=gated(self.experts),
            granularity=config.granularity,
            settings=_settings(model, self.experts, config),
            tensors=gate_tensors(self.mixture),
            sizes=gate_sizes(self.mixture),
            training={
                "settings": config.to_json() | {"output": config.output.name},
                "steps": learner.step,
                "skipped": learner.skipped,
                **self.details(learner),
            },
        ).write(config.output)
        return {}

    @torch.no_grad()
    def _bound(self) -> None:
        for gate in self.mixture.learned_gates.values():
            gate.tau.clamp_(*TAU)  # outside, it would never get a gradient again


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
    check_here(model)
    for expert in experts:
        if expert.info.tool is not None:
            raise ComposerError(
                f"The LoRA {expert.name!r} is for few steps ({expert.info.tool.name}) and not for "
                "what pictures show: gates do not weigh it. Leave it out here, and choose it "
                "beside the gates."
            )
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
    check_state(config, _facts(model, experts), processes)
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
        trainer = GateTrainer(model, mixture, experts, objective, config, processes)
        yield from trainer.run(cancelled)


def _facts(model: Model, experts: Sequence[Expert]) -> dict[str, object]:
    """What a state to resume from must share. What the experts draw alone is not kept: it follows
    from the seed, and is made again in seconds."""
    return {
        "other LoRAs, or in another order": [[e.name, e.tensor_hash] for e in experts],
        "another model": model.hash,
    }


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


def _settings(
    model: Model, experts: Sequence[Expert], config: GateTraining
) -> dict[str, GateSettings]:
    """Of the gates, by part of the model; a text encoder knows no timestep."""
    gate = gate_for(config, [expert.info.role for expert in experts])
    return dict.fromkeys(model.family.parts if config.paper else ("unet",), gate)


def _gates(
    model: Model, mixture: Mixture, experts: Sequence[Expert], config: GateTraining
) -> dict[str, LearnedGate]:
    """New gates as they begin: free ones give the plain sum, a softmax even shares."""

    @torch.no_grad()
    def once() -> None:
        latents = torch.zeros(1, *latent_shape(model), device=model.device)
        predict(model, latents, torch.tensor(0), encode_prompts(model, "", None).positive)

    made = new_gates(mixture, _settings(model, experts, config), once, seed=config.seed)
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
