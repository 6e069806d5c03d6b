"""Following a training on pictures on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from composer.commands._watching import finish, show, stopped_by_user

if TYPE_CHECKING:
    from composer.training.picture_settings import PictureTraining
    from composer.training.progress import Progress


def follow(
    train: Callable[..., Iterator[Progress]], config: PictureTraining, *, model: str, device: str
) -> None:
    """Train on `model`, with the progress on standard error, by the first process only; Ctrl-C
    stops cleanly.

    train: takes the model, `config` and what says whether to stop (`cancelled`).
    device: empty for what accelerate chooses.
    """
    import torch

    from composer.diffusion.load import load_model
    from composer.training.processes import join_processes

    processes = join_processes(device)
    loaded = load_model(model, device=device or processes.device, dtype=torch.float32)
    main, last = processes.is_main_process, None
    with stopped_by_user() as stopped:
        for last in train(loaded, config, cancelled=stopped.is_set):
            if main:
                _show(last)
                if last.preview is not None and last.stage == "train":
                    last.preview.save(config.output.with_name(f"{config.name}-{last.step:06}.png"))
    written = None if last is None else last.path
    finish([written], stopped=stopped.is_set(), checkpoints=[config.checkpoint], main=main)


def _show(progress: Progress) -> None:
    words = {"prior": "prior pictures", "prepare": "pictures", "train": "step", "saved": "saved"}
    line = f"{words[progress.stage]} {progress.step}/{progress.total}"
    if progress.smoothed_loss is not None:
        line += f"  loss {progress.smoothed_loss:.4f}  lr {progress.learning_rate:.1e}"
    if progress.skipped:
        line += f"  skipped {progress.skipped}"
    show(line, step=progress.step, total=progress.total, seconds_left=progress.seconds_left)
