"""What a LoRA file holds about its training: kohya's `ss_*`, `modelspec.*` and Composer's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from composer.precision import in_bfloat16
from composer.training.lora.settings import LoraTraining
from composer.training.picture_train import PictureTrainer, versions
from composer.training.pictures import TrainingPicture

OPTIMIZERS = {"adamw": "torch.optim.AdamW", "muon": "composer.training.muon.Muon"}
_PATHS = ("output", "pictures", "prior_pictures")


def training_metadata(trainer: PictureTrainer, config: LoraTraining) -> dict[str, str]:
    """All values as strings, some of them JSON; of paths only the last name.

    `write_lora` adds what it knows itself: title, trigger, role, rank, alpha and hash.
    """
    model, pictures, learner = trainer.model, trainer.dataset.pictures, trainer.learner
    finished = datetime.now(timezone.utc)
    family = model.family.kohya or model.name
    architecture = model.family.modelspec or model.name
    subjects = [picture for picture in pictures if not picture.is_prior]
    folder = config.pictures.resolve().name if config.pictures is not None else config.name
    width, height = subjects[0].image.size
    values: dict[str, Any] = {
        "ss_base_model_version": family,
        "ss_sd_model_name": model.name,
        "ss_new_sd_model_hash": model.hash,
        "ss_v2": family == "sd_v2",
        "ss_resolution": f"({width}, {height})",
        "ss_num_train_images": len(subjects),
        "ss_num_reg_images": len(pictures) - len(subjects),
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": 1, "img_count": len(subjects)}}),
        "ss_tag_frequency": json.dumps({folder: _tags(subjects)}, ensure_ascii=False),
        "ss_steps": learner.step,
        "ss_zero_terminal_snr": not bool(trainer.dataset.objective.signal[-1] > 1e-6),
        "ss_training_started_at": trainer.started.timestamp(),
        "ss_training_finished_at": finished.timestamp(),
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": model.prediction_type.removesuffix("_prediction"),
        "modelspec.tags": config.role,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": finished.isoformat(timespec="seconds"),
        "composer.training": json.dumps(_settings(config), ensure_ascii=False),
        "composer.skipped_steps": learner.skipped,
        "composer.smoothed_loss": f"{learner.smoothed_loss:.6g}",
        "composer.versions": json.dumps(versions()),
        "ss_mixed_precision": "bf16" if in_bfloat16(config.precision, str(model.device)) else "no",
        **_kohya_settings(config),
    }
    return {key: str(value) for key, value in values.items()}


def _kohya_settings(config: LoraTraining) -> dict[str, Any]:
    """The settings by the names that kohya's trainer gives them."""
    text_rate = config.text_learning_rate or config.learning_rate / 2
    return {
        "ss_max_train_steps": config.steps,
        "ss_batch_size_per_device": config.batch_size,
        "ss_gradient_accumulation_steps": config.accumulation,
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate,
        "ss_text_encoder_lr": text_rate if config.text_encoder else None,
        "ss_lr_scheduler": config.schedule,
        "ss_lr_warmup_steps": config.warmup,
        "ss_optimizer": OPTIMIZERS[config.optimizer],
        "ss_max_grad_norm": config.clip_norm,
        "ss_min_snr_gamma": config.min_snr_gamma,
        "ss_noise_offset": config.noise_offset,
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_prior_loss_weight": config.prior_weight,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_cache_latents": True,
        "ss_seed": config.seed,
    }


def _settings(config: LoraTraining) -> dict[str, Any]:
    """The config as JSON without where things lie on this machine."""
    names = {key: getattr(config, key) and getattr(config, key).name for key in _PATHS}
    return config.to_json() | names


def _tags(pictures: Sequence[TrainingPicture]) -> dict[str, int]:
    """kohya's tags: the parts of the captions between commas, and how often each occurs."""
    tags = (tag.strip() for picture in pictures for tag in picture.caption.split(","))
    return dict(Counter(tag for tag in tags if tag).most_common())
