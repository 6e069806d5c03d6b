"""Training a LoRA, from pictures to the written file."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
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
from composer.training.config import LoraTraining
from composer.training.draws import Draws
from composer.training.file import write_preview, write_trained
from composer.training.network import LoraNetwork, check_targets
from composer.training.objective import Objective
from composer.training.output import check_writable
from composer.training.pictures import TrainingPicture, read_folder, square
from composer.training.prior import draw_priors
from composer.training.processes import join_processes
from composer.training.progress import Clock, Progress
from composer.training.trainer import Diverged, Lesson, Trainer

ENCODED_AT_ONCE = 8
PREVIEW_STEPS = 20
PREVIEW_CFG_SCALE = 4.0


def train_lora(
    model: Model,
    config: LoraTraining,
    *,
    pictures: Sequence[TrainingPicture] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Progress]:
    """Train a LoRA on the model (DreamBooth, Ruiz et al. 2022, with low-rank layers) and write it.

    The pictures come from `config.pictures` and `config.prior_pictures`, or from memory. Each
    step minimises the mean over a batch of `w(t) |prediction - target|^2` at random timesteps,
    where `w` is min-SNR's; prior pictures are in each batch by `prior_share`.

    Wrong settings, pictures or captions raise ComposerError here, before the first report. The
    last report has stage "saved" and the path. When cancelled, the reports end without it, and
    the state to resume from is kept if `config.checkpoint_every` asks for one. However it ends,
    the model is as it was, bit for bit. Raises Diverged after three steps in a row without a
    finite loss; the last good factors are then in the file.
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
    check_targets(model.unet, "U-Net", config.targets)
    if config.text_encoder:
        check_targets(model.text_encoder, "text encoder", config.text_targets)
    check_writable(config.output)
    return _train(model, config, _gather(config, pictures, resolution), resolution, cancelled)


def _gather(
    config: LoraTraining, given: Sequence[TrainingPicture] | None, resolution: int
) -> list[TrainingPicture]:
    """The subject's pictures, then the prior ones."""
    if given is None and config.pictures is None:
        raise ComposerError("There is nothing to train on: give a folder of pictures.")
    found = [
        TrainingPicture(
            image=square(picture.image, resolution),
            caption=picture.caption or config.trigger,
            weight=picture.weight,
            is_prior=picture.is_prior,
        )
        for picture in given or ()
    ]
    if given is None and config.pictures is not None:
        found += read_folder(config.pictures, resolution=resolution, trigger=config.trigger)
    if config.prior_pictures is not None:
        found += read_folder(config.prior_pictures, resolution=resolution, is_prior=True)
    if all(picture.is_prior for picture in found):
        raise ComposerError("There is no picture to train on besides prior pictures: add some.")
    if bare := sum(not picture.caption for picture in found):
        raise ComposerError(f"{bare} pictures have no caption: give captions, or a trigger.")
    return sorted(found, key=lambda picture: picture.is_prior)


def _train(
    model: Model,
    config: LoraTraining,
    pictures: list[TrainingPicture],
    resolution: int,
    cancelled: Callable[[], bool],
) -> Iterator[Progress]:
    processes = join_processes()
    started = datetime.now(timezone.utc)
    if config.prior_prompts:
        yield Progress(stage="prior", step=0, total=config.prior_count)
        for number, picture in enumerate(
            draw_priors(
                model,
                config.prior_prompts,
                config.prior_count,
                resolution=resolution,
                seed=config.seed,
                cancelled=cancelled,
            ),
            start=1,
        ):
            pictures.append(picture)
            yield Progress(
                stage="prior", step=number, total=config.prior_count, preview=picture.image
            )
    if cancelled():
        return
    lesson = yield from _prepare(model, config, pictures, cancelled)
    if lesson is None:
        return
    models = {"unet": model.unet, "text_encoder": model.text_encoder}
    targets = {"unet": config.unet_targets}
    if config.text_encoder:
        targets["text_encoder"] = config.text_targets
    network = LoraNetwork(
        models, targets, rank=config.rank, alpha=config.scale * config.rank, seed=config.seed
    )
    checkpointed = bool(model.unet.is_gradient_checkpointing)
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
            load_checkpoint(config.checkpoint, trainer, pictures)
        try:
            yield from _steps(trainer, cancelled)
        except Diverged:
            if processes.is_main_process and trainer.step > trainer.skipped:
                write_trained(trainer, started)
            raise
        if trainer.step < config.steps:  # cancelled
            return
        preview = None
        if processes.is_main_process:
            write_trained(trainer, started)
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
    config: LoraTraining,
    pictures: list[TrainingPicture],
    cancelled: Callable[[], bool],
) -> Generator[Progress, None, Lesson | None]:
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
        keep_states=not config.text_encoder,
    )
    objective = Objective.from_scheduler(model.scheduler_config)
    priors = sum(picture.is_prior for picture in pictures)
    draws = Draws(
        seed=config.seed,
        subjects=len(pictures) - priors,
        priors=priors,
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
        prompt=config.preview_prompt or config.trigger or trainer.lesson.pictures[0].caption,
        seed=config.seed,
        steps=PREVIEW_STEPS,
        cfg_scale=PREVIEW_CFG_SCALE,
    )
    events = generate(trainer.model, request)
    return next(event.image for event in events if isinstance(event, Picture))
