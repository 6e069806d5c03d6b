"""A training on pictures, from pictures in memory to the written file, whatever is trained."""

from __future__ import annotations

import io
import platform
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor, nn

import composer
from composer.diffusion.conditioning import Text, encode_ids
from composer.diffusion.denoise import predict
from composer.diffusion.lowvram import check_here
from composer.diffusion.model import Model
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.errors import ComposerError
from composer.files import write_atomically
from composer.mixlora import Tape
from composer.precision import autocast
from composer.training.cache import (
    CaptionCache,
    LatentCache,
    encode_captions,
    encode_pictures,
)
from composer.training.core import Learner, Trainer
from composer.training.draws import Draws
from composer.training.muon import Muon
from composer.training.objective import Objective
from composer.training.picture_settings import PictureTraining
from composer.training.pictures import TrainingPicture, fingerprint, read_folder, square
from composer.training.prior import draw_priors
from composer.training.processes import join_processes
from composer.training.progress import Progress
from composer.training.state import check_state

ENCODED_AT_ONCE = 8
PREVIEW_STEPS = 20
PREVIEW_CFG_SCALE = 4.0
FILE_TYPES = {"float16": torch.float16, "float32": torch.float32}


class Network(Protocol):
    """What is trained, attached to its models; all else in them is frozen meanwhile.

    parameters: what is trained, by name. groups: the same for an optimizer, with "params" and
        their highest "lr". record_routing: collects what
        routers decide, for their loss.
    state: figures of its own that a resumed training needs.
    """

    def parameters(self) -> dict[str, nn.Parameter]: ...
    def groups(self) -> list[dict[str, Any]]: ...
    def record_routing(self) -> Any: ...
    def router_loss(self, tape: Tape) -> Tensor: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: dict[str, Tensor]) -> None: ...
    def detach(self) -> None: ...


Trained = TypeVar("Trained", bound=Network)


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Trained]):
    """What one kind of training does in its own way.

    sets: the training pictures, set by set. priors: those of what the model is to keep.
    attach: puts what is trained into the model. write: writes what was learned so far to the file.
    trains_text: whether the text encoder changes.
    """

    sets: Sequence[Sequence[TrainingPicture]]
    priors: Sequence[TrainingPicture]
    attach: Callable[[], Trained]
    write: Callable[[PictureTrainer, Trained], None]
    trains_text: bool = False


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Everything a training looks at: the frozen caches and how batches are drawn from them."""

    pictures: list[TrainingPicture]
    latents: LatentCache
    captions: CaptionCache
    draws: Draws
    objective: Objective


class PictureTrainer(Trainer[Progress]):
    """Trains a network on the U-Net's loss; `started` is when the training was."""

    def __init__(
        self,
        model: Model,
        config: PictureTraining,
        task: Task[Any],
        facts: dict[str, object],
        dataset: Dataset,
        network: Network,
        processes: Any,
        started: datetime,
    ) -> None:
        groups, decay = network.groups(), config.weight_decay
        learner = Learner(
            config=config,
            parameters=network.parameters(),
            optimizer=Muon(groups, decay=decay)
            if config.optimizer == "muon"
            else torch.optim.AdamW(groups, weight_decay=decay, fused=True),
            total=config.steps,
            facts=facts,
            warmup=config.warmup,
            schedule=config.schedule,
            clip_norm=config.clip_norm,
        )
        tokens = dataset.latents.mean[0, 0].numel()
        super().__init__([learner], processes, device=model.device, tokens=tokens)
        self.model, self.config, self.started = model, config, started
        self.dataset, self.network, self._task = dataset, network, task

    def loss(self, number: int) -> tuple[Tensor, dict[str, float]]:
        """The mean over a batch of `w(t) |prediction - target|^2`, and what routers add."""
        dataset, config, device = self.dataset, self.config, self.device
        draw = dataset.draws.batch(number)
        latents = dataset.latents.take(draw.pictures, draw.flipped, draw.latent_noise)
        noised = dataset.objective.noised(latents, draw.noise, draw.timesteps)
        target = dataset.objective.target(latents, draw.noise, draw.timesteps).to(device)
        chosen = [dataset.pictures[index] for index in draw.pictures]
        weights = dataset.objective.weights(draw.timesteps, config.min_snr_gamma) * torch.tensor(
            [p.weight * (config.prior_weight if p.is_prior else 1.0) for p in chosen]
        )
        captions = [
            "" if dropped else picture.caption
            for dropped, picture in zip(draw.dropped, chosen, strict=True)
        ]
        devices = [device] if device.type == "cuda" else []
        half = autocast(config.precision, device.type)
        apart = cast(Any, torch.random).fork_rng(devices=devices)
        with apart, self.network.record_routing() as tape, half:
            cast(Any, torch).manual_seed(draw.seed)
            text = self._text(captions).to(device, self.model.dtype)
            predicted = predict(self.model, noised.to(device), draw.timesteps.to(device), text)
        errors = (predicted - target).square().mean(dim=(1, 2, 3))
        loss = (errors * weights.to(device)).mean() + self.network.router_loss(tape).to(device)
        return loss, {}

    def look(self, learner: Learner) -> dict[str, Any]:
        """A preview, where one is due."""
        every = self.config.preview_every
        return {"preview": self._preview()} if every and learner.step % every == 0 else {}

    def write(self, learner: Learner) -> dict[str, Any]:
        """The file; and the picture that libraries show for it, `<name>.png`, if asked for."""
        self._task.write(self, self.network)
        if learner.diverged or not self.config.save_preview:
            return {}
        preview, buffer = self._preview(), io.BytesIO()
        preview.save(buffer, "PNG")
        write_atomically(self.config.output.with_suffix(".png"), buffer.getvalue())
        return {"preview": preview}

    def own(self) -> dict[str, Tensor]:
        return self.network.state()

    def load_own(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state(tensors)

    def _text(self, captions: list[str]) -> Text:
        cache = self.dataset.captions
        rows = cache.rows(captions)
        if cache.text is not None:
            return cache.text[rows]
        return encode_ids(self.model, {part: ids[rows] for part, ids in cache.ids.items()})

    def _preview(self) -> Image.Image:
        """What the model draws now for the preview's prompt, always from the same seed."""
        request = Request(
            prompt=self.config.shown_prompt or self.dataset.pictures[0].caption,
            seed=self.config.seed,
            steps=PREVIEW_STEPS,
            cfg_scale=PREVIEW_CFG_SCALE,
        )
        events = generate(self.model, request)
        return next(event.image for event in events if isinstance(event, Picture))


def check_model(model: Model, config: PictureTraining) -> int:
    """The resolution to train at.

    Raises:
        ComposerError: the model or the resolution cannot be trained at.
    """
    check_here(model)
    resolution = config.resolution or model.size
    if resolution % model.multiple:
        raise ComposerError(
            f"resolution is {resolution}: give a multiple of {model.multiple}, which this model"
            " needs."
        )
    if model.dtype == torch.float16:
        raise ComposerError(
            f"{model.name} is loaded in float16, in which small gradients vanish: load it in"
            " float32 to train, or in bfloat16."
        )
    return resolution


def sort_pictures(
    resolution: int, pictures: Sequence[TrainingPicture], trigger: str
) -> tuple[list[TrainingPicture], list[TrainingPicture]]:
    """Training pictures and prior ones, all squared.

    trigger: the caption of training pictures that have none.

    Raises:
        ComposerError: nothing to train on, or a picture without a caption.
    """
    found = [
        TrainingPicture(
            image=square(picture.image, resolution),
            caption=picture.caption or trigger,
            weight=picture.weight,
            is_prior=picture.is_prior,
        )
        for picture in pictures
    ]
    if all(picture.is_prior for picture in found):
        raise ComposerError("There is no picture to train on besides prior pictures: add some.")
    if bare := sum(not picture.caption for picture in found):
        raise ComposerError(f"{bare} pictures have no caption: give captions, or a trigger.")
    return [p for p in found if not p.is_prior], [p for p in found if p.is_prior]


def read_priors(config: PictureTraining, resolution: int) -> list[TrainingPicture]:
    """The pictures of `config.prior_pictures`."""
    if config.prior_pictures is None:
        return []
    return read_folder(config.prior_pictures, resolution=resolution, is_prior=True)


def train_pictures(
    model: Model,
    config: PictureTraining,
    task: Task[Any],
    resolution: int,
    cancelled: Callable[[], bool],
) -> Iterator[Progress]:
    """Do the task, and write its file; see `train_lora` for what is promised."""
    processes = join_processes()
    pictures = [picture for chosen in task.sets for picture in chosen] + list(task.priors)
    counts = [len(chosen) for chosen in task.sets]
    # prior pictures that the model draws follow from the model and the settings
    facts: dict[str, object] = {
        "other pictures or captions": [counts, fingerprint(pictures)],
        "another model": model.hash,
    }
    check_state(config, facts, processes)
    return _train(model, config, task, facts, resolution, processes, cancelled)


def _train(
    model: Model,
    config: PictureTraining,
    task: Task[Any],
    facts: dict[str, object],
    resolution: int,
    processes: Any,
    cancelled: Callable[[], bool],
) -> Iterator[Progress]:
    started = datetime.now(timezone.utc)
    priors = list(task.priors)
    if config.prior_prompts:
        yield Progress(stage="prior", step=0, total=config.prior_count)
        drawn = draw_priors(
            model,
            config.prior_prompts,
            config.prior_count,
            resolution=resolution,
            seed=config.seed,
            cancelled=cancelled,
        )
        for number, picture in enumerate(drawn, start=1):
            priors.append(picture)
            yield Progress(
                stage="prior", step=number, total=config.prior_count, preview=picture.image
            )
    if cancelled():
        return
    dataset = yield from _prepare(model, config, task, priors, cancelled)
    if dataset is None:
        return
    checkpointed = bool(model.unet.is_gradient_checkpointing)
    network = task.attach()
    try:
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        trainer = PictureTrainer(model, config, task, facts, dataset, network, processes, started)
        yield from trainer.run(cancelled)
    finally:
        network.detach()
        if config.gradient_checkpointing and not checkpointed:
            model.unet.disable_gradient_checkpointing()


def _prepare(
    model: Model,
    config: PictureTraining,
    task: Task[Any],
    priors: Sequence[TrainingPicture],
    cancelled: Callable[[], bool],
) -> Generator[Progress, None, Dataset | None]:
    pictures = [picture for chosen in task.sets for picture in chosen] + list(priors)
    parts: list[LatentCache] = []
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        images = [picture.image for picture in pictures[start : start + ENCODED_AT_ONCE]]
        parts.append(encode_pictures(model.vae, images, flip=config.flip))
        yield Progress(stage="prepare", step=start + len(images), total=len(pictures))
        if cancelled():
            return None
    latents = LatentCache.joined(parts)
    captions = encode_captions(
        model,
        [picture.caption for picture in pictures],
        keep_text=not task.trains_text,
    )
    objective = Objective.from_scheduler(model.scheduler_config)
    draws = Draws(
        seed=config.seed,
        sets=tuple(len(chosen) for chosen in task.sets),
        priors=len(priors),
        prior_share=config.prior_share,
        batch_size=config.batch_size,
        timesteps=objective.timesteps,
        latent_shape=(latents.mean.shape[1], latents.mean.shape[2], latents.mean.shape[3]),
        noise_offset=config.noise_offset,
        caption_dropout=config.caption_dropout,
        flip=config.flip,
    )
    return Dataset(
        pictures=pictures, latents=latents, captions=captions, draws=draws, objective=objective
    )


def versions() -> dict[str, str]:
    """Of Composer and the libraries that a training depends on."""
    import diffusers
    import peft

    return {
        "composer": composer.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
    }
