"""What a training leaves: reports, the state to resume from, and the written adapters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from composer.training.language.checkpoint import save_checkpoint
from composer.training.language.config import LanguageTraining
from composer.training.language.handle import save_trained
from composer.training.language.learner import Learner
from composer.training.language.progress import LanguageProgress
from composer.training.language.trainer import LanguageTrainer


def keep_state(trainer: LanguageTrainer, learner: Learner) -> None:
    """The state to resume from, when it is due; of one that is done, while others are not."""
    every = learner.config.checkpoint_every
    if not trainer.processes.is_main_process or not every:
        return
    others = any(other.running for other in trainer.learners if other is not learner)
    if learner.step % every == 0 if learner.running else others:
        save_checkpoint(learner, trainer.language, trainer.processes)


def write_learner(trainer: LanguageTrainer, learner: Learner) -> Iterator[LanguageProgress]:
    """Write an adapter that is done, or the last good one of a training that diverged."""
    measured = trainer.evaluate(learner)
    metadata = {
        "composer.training": json.dumps(_settings(learner.config), ensure_ascii=False),
        "composer.steps": str(learner.step),
        "composer.skipped_steps": str(learner.skipped),
        "composer.smoothed_loss": f"{learner.smoothed_loss:.6g}",
    }
    if measured is not None:
        metadata["composer.eval_loss"] = f"{measured:.6g}"
    save_trained(trainer.adapters, learner.name, learner.config.output, metadata)
    if not learner.diverged:
        yield report(learner, stage="saved", eval_loss=measured, path=learner.config.output)


def _settings(config: LanguageTraining) -> dict[str, Any]:
    """The config as JSON without where things lie on this machine."""
    names = {
        key: path.name if (path := getattr(config, key)) is not None else None
        for key in ("output", "data", "eval_data")
    }
    return config.to_json() | names


def report(learner: Learner, **more: Any) -> LanguageProgress:
    """Where a learner is; `more` are further fields."""
    smoothed = learner.smoothed_loss
    values: dict[str, Any] = {"stage": "train", **more}
    return LanguageProgress(
        **values,
        name=learner.name,
        step=learner.step,
        total=learner.total,
        smoothed_loss=smoothed if math.isfinite(smoothed) else None,
        learning_rate=learner.learning_rate,
        skipped=learner.skipped,
        cut=learner.lesson.cut,
    )
