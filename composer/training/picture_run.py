"""A training on pictures, from pictures in memory to the written file, whatever is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from PIL import Image

from composer.diffusion.model import Model
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, generate
from composer.errors import ComposerError
from composer.training.cache import LatentCache, encode_captions, encode_pictures
from composer.training.checkpoint import load_checkpoint, save_checkpoint
from composer.training.draws import Draws
from composer.training.file import write_preview
from composer.training.network import Network
from composer.training.objective import Objective
from composer.training.picture_config import PictureTraining
from composer.training.pictures import TrainingPicture, read_folder, square
from composer.training.prior import draw_priors
from composer.training.processes import join_processes
from composer.training.progress import Clock, Progress
from composer.training.trainer import Diverged, Lesson, Trainer

ENCODED_AT_ONCE = 8
PREVIEW_STEPS = 20
PREVIEW_CFG_SCALE = 4.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one kind of training does in its own way.

    sets: the training pictures, set by set. priors: those of what the model is to keep.
    attach: puts what is trained into the model. write: writes what was learned so far to the file
        of the training; it is told when the training started.
    trains_text: whether the text encoder changes.
    """

    sets: Sequence[Sequence[TrainingPicture]]
    priors: Sequence[TrainingPicture]
    attach: Callable[[], Network]
    write: Callable[[Trainer, datetime], None]
    trains_text: bool = False


def check_model(model: Model, config: PictureTraining) -> int:
    """The resolution to train at.

    Raises:
        ComposerError: the model or the resolution cannot be trained at.
    """
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
    config: PictureTraining,
    resolution: int,
    pictures: Sequence[TrainingPicture],
    trigger: str,
) -> tuple[list[TrainingPicture], list[TrainingPicture]]:
    """Training pictures and prior ones, with those of `config.prior_pictures`, all squared.

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
    task: Task,
    resolution: int,
    cancelled: Callable[[], bool],
) -> Iterator[Progress]:
    """Do the task, and write its file; see `train_lora` for what is promised."""
    processes = join_processes()
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
    lesson = yield from _prepare(model, config, task, priors, cancelled)
    if lesson is None:
        return
    checkpointed = bool(model.unet.is_gradient_checkpointing)
    network = task.attach()
    try:
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        trainer = Trainer(
            model=model,
            network=network,
            lesson=lesson,
            config=config,
            processes=processes,
        )
        if config.resume and config.checkpoint.is_file():
            load_checkpoint(config.checkpoint, trainer, lesson.pictures)
        try:
            yield from _steps(trainer, cancelled)
        except Diverged:
            if processes.is_main_process and trainer.step > trainer.skipped:
                task.write(trainer, started)
            raise
        if trainer.step < config.steps:  # cancelled
            return
        preview = None
        if processes.is_main_process:
            task.write(trainer, started)
            config.checkpoint.unlink(missing_ok=True)
            if config.save_preview:
                preview = _preview(trainer)
                write_preview(config, preview)
        processes.wait_for_everyone()
        yield _report(trainer, stage="saved", preview=preview)
    finally:
        network.detach()
        if config.gradient_checkpointing and not checkpointed:
            model.unet.disable_gradient_checkpointing()


def _prepare(
    model: Model,
    config: PictureTraining,
    task: Task,
    priors: Sequence[TrainingPicture],
    cancelled: Callable[[], bool],
) -> Generator[Progress, None, Lesson | None]:
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
        keep_states=not task.trains_text,
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
    return Lesson(
        pictures=pictures, latents=latents, captions=captions, draws=draws, objective=objective
    )


def _steps(trainer: Trainer, cancelled: Callable[[], bool]) -> Iterator[Progress]:
    config, main = trainer.config, trainer.processes.is_main_process
    clock = Clock(trainer.step, config.steps)
    while trainer.step < config.steps and not cancelled():
        loss = trainer.advance()
        every, previews = config.checkpoint_every, config.preview_every
        if main and every and trainer.step % every == 0 and trainer.step < config.steps:
            save_checkpoint(config.checkpoint, trainer, trainer.lesson.pictures)
        preview = None
        if main and previews and trainer.step % previews == 0:
            with clock.paused():
                preview = _preview(trainer)
        yield _report(
            trainer, loss=loss, preview=preview, seconds_left=clock.seconds_left(trainer.step)
        )
    if main and config.checkpoint_every and trainer.step < config.steps:
        save_checkpoint(config.checkpoint, trainer, trainer.lesson.pictures)


def _report(trainer: Trainer, **more: Any) -> Progress:
    values: dict[str, Any] = {"stage": "train", **more}
    smoothed = trainer.smoothed_loss
    if values["stage"] == "saved":
        values["path"] = trainer.config.output
    return Progress(
        step=trainer.step,
        total=trainer.config.steps,
        smoothed_loss=smoothed if math.isfinite(smoothed) else None,
        learning_rate=trainer.learning_rate,
        skipped=trainer.skipped,
        **values,
    )


def _preview(trainer: Trainer) -> Image.Image:
    """What the model draws now for the preview's prompt, always from the same seed."""
    config = trainer.config
    request = Request(
        prompt=config.shown_prompt or trainer.lesson.pictures[0].caption,
        seed=config.seed,
        steps=PREVIEW_STEPS,
        cfg_scale=PREVIEW_CFG_SCALE,
    )
    events = generate(trainer.model, request)
    return next(event.image for event in events if isinstance(event, Picture))
