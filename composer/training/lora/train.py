"""Training a LoRA, from pictures to the written file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.experts.info import LoraInfo
from composer.experts.write import write_lora
from composer.files import check_writable
from composer.training.lora.metadata import training_metadata
from composer.training.lora.network import LoraNetwork, check_targets
from composer.training.lora.settings import LoraTraining
from composer.training.picture_train import (
    FILE_TYPES,
    PictureTrainer,
    Task,
    check_model,
    read_priors,
    sort_pictures,
    train_pictures,
)
from composer.training.pictures import TrainingPicture, read_folder
from composer.training.progress import Progress


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
    resolution = check_model(model, config)
    check_targets(model.unet, "U-Net", config.targets)
    if config.text_encoder:
        for encoder in model.encoders.values():
            check_targets(encoder.network, "text encoder", config.text_targets)
    check_writable(config.output)
    if pictures is None and config.pictures is None:
        raise ComposerError("There is nothing to train on: give a folder of pictures.")
    found = list(pictures or ())
    if pictures is None and config.pictures is not None:
        found = read_folder(config.pictures, resolution=resolution, trigger=config.trigger)
    found += read_priors(config, resolution)
    subjects, priors = sort_pictures(resolution, found, config.trigger)
    task = Task(
        sets=(subjects,),
        priors=priors,
        attach=lambda: _attach(model, config),
        write=lambda trainer, network: _write(trainer, network, config),
        trains_text=config.text_encoder,
    )
    return train_pictures(model, config, task, resolution, cancelled)


def _attach(model: Model, config: LoraTraining) -> LoraNetwork:
    """Fresh layers on the targets."""
    targets, rates = {"unet": config.unet_targets}, {"unet": config.learning_rate}
    if config.text_encoder:
        text_rate = config.text_learning_rate or config.learning_rate / 2
        targets |= dict.fromkeys(model.encoders, config.text_targets)
        rates |= dict.fromkeys(model.encoders, text_rate)
    return LoraNetwork(
        model.models,
        targets,
        rank=config.rank,
        alpha=config.scale * config.rank,
        seed=config.seed,
        rates=rates,
    )


def _write(trainer: PictureTrainer, network: LoraNetwork, config: LoraTraining) -> None:
    """What was learned so far, whole or not at all."""
    write_lora(
        config.output,
        network.factors(),
        LoraInfo(
            trigger=config.trigger,
            role=config.role,
            base=trainer.model.name,
            rank=config.rank,
            title=config.title,
            description=config.description,
            extra=training_metadata(trainer, config),
        ),
        naming=config.naming,
        dtype=FILE_TYPES[config.file_type],
    )
