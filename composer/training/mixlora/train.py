"""Training a MixLoRA on pictures: several image sets at once, one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.experts.triggers import without_words
from composer.files import check_writable
from composer.fusions.mixlora_file import ADAPTER, LearnedSet, MixLoraFile
from composer.mixlora import attach_mixlora
from composer.training.mixlora.network import MixLoraNetwork
from composer.training.mixlora.settings import ImageSet, PictureMixLoraTraining
from composer.training.picture_train import (
    FILE_TYPES,
    PictureTrainer,
    Task,
    check_model,
    read_priors,
    sort_pictures,
    train_pictures,
    versions,
)
from composer.training.pictures import TrainingPicture, read_folder
from composer.training.progress import Progress

PATHS = ("output", "pictures", "prior_pictures")
"""Settings that are paths."""


def train_picture_mixlora(
    model: Model,
    config: PictureMixLoraTraining,
    *,
    pictures: Mapping[str, Sequence[TrainingPicture]] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Progress]:
    """Train one MixLoRA (arXiv 2404.15159) on all image sets at once and write it.

    Every FFN of the U-Net gets experts and a router for each token; attention, and convolutions if
    it is asked for, get plain LoRA beside them. The loss is that of `train_lora`, with the routers'
    balance loss added. Batches take from the sets in turn.

    pictures: those of the sets without a folder, by trigger, prior pictures among them.

    Wrong settings, pictures or captions raise ComposerError here, before the first report. Reports,
    cancelling, resuming and Diverged are as in `train_lora`; however it ends, the model is as it
    was, bit for bit.
    """
    resolution = check_model(model, config)
    with attach_mixlora(model.unet, {ADAPTER: config.adapter}, seed=0):
        pass  # it fits this model
    check_writable(config.output)
    sets: list[list[TrainingPicture]] = []
    priors = read_priors(config, resolution)
    for one in config.sets:
        given = None if pictures is None else pictures.get(one.trigger)
        subjects, more = _gather(one, given, resolution)
        sets.append(subjects)
        priors += more
    task = Task(
        sets=sets,
        priors=priors,
        attach=lambda: MixLoraNetwork(
            model.models,
            config.adapter,
            seed=config.seed,
            rate=config.learning_rate,
            balance_over=config.balance_over,
        ),
        write=lambda trainer, network: _write(trainer, network, config, sets),
    )
    return train_pictures(model, config, task, resolution, cancelled)


def _gather(
    one: ImageSet,
    given: Sequence[TrainingPicture] | None,
    resolution: int,
) -> tuple[list[TrainingPicture], list[TrainingPicture]]:
    """One set's training pictures, and the prior ones among those given."""
    found = list(given or ())
    if given is None:
        if one.pictures is None:
            raise ComposerError(f"The image set {one.trigger!r} has no pictures: give it a folder.")
        found = read_folder(one.pictures, resolution=resolution, trigger=one.trigger)
    try:
        subjects, priors = sort_pictures(resolution, found, one.trigger)
    except ComposerError as error:
        raise ComposerError(f"The image set {one.trigger!r}: {error}") from None
    if all(without_words(picture.caption, one.trigger) is None for picture in subjects):
        raise ComposerError(
            f"No caption of the image set {one.trigger!r} has its trigger in it, so nothing would"
            f" call it (the first caption is {subjects[0].caption[:60]!r}). Write it into the"
            " captions, or choose the trigger that stands there."
        )
    return subjects, priors


def _write(
    trainer: PictureTrainer,
    network: MixLoraNetwork,
    config: PictureMixLoraTraining,
    sets: Sequence[Sequence[TrainingPicture]],
) -> None:
    """What was learned so far, whole or not at all."""
    MixLoraFile(
        model=trainer.model.name,
        model_hash=trainer.model.hash,
        settings=network.mixlora.configs[ADAPTER],
        sets=tuple(
            LearnedSet(trigger=one.trigger, title=one.title, pictures=len(subjects))
            for one, subjects in zip(config.sets, sets, strict=True)
        ),
        title=config.title,
        description=config.description,
        training=_facts(trainer, network, config),
        tensors=network.mixlora.state_dict(ADAPTER),
    ).write(config.output, dtype=FILE_TYPES[config.file_type])


def _facts(
    trainer: PictureTrainer, network: MixLoraNetwork, config: PictureMixLoraTraining
) -> dict[str, Any]:
    """What the file holds about its training; of paths only the last name."""
    finished, learner = datetime.now(timezone.utc), trainer.learner
    settings = config.to_json()
    for one in (settings, *settings["sets"]):
        one |= {name: path and Path(path).name for name, path in one.items() if name in PATHS}
    return {
        "settings": settings,
        "steps": learner.step,
        "skipped_steps": learner.skipped,
        "loss": round(learner.smoothed_loss, 6),
        "balance_loss": None if network.balance is None else round(network.balance, 4),
        "loads": {
            host: [round(float(part), 3) for part in load] for host, load in network.loads.items()
        },
        "started": trainer.started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "versions": versions(),
    }
