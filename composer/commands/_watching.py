"""Following a training on the command line: a line of progress, and Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from composer.clock import left

if TYPE_CHECKING:
    from composer.training.picture_settings import PictureTraining
    from composer.training.progress import Progress

_STAGES = {
    "prior": "prior pictures",
    "alone": "LoRAs alone",
    "prepare": "prepared",
    "train": "step",
    "sample": "sampling",
    "measure": "measuring",
    "saved": "saved",
}
_FIGURES = {
    "smoothed_loss": "loss {:.4f}",
    "learning_rate": "lr {:.1e}",
    "router_loss": "routers {:.4f}",
    "eval_loss": "eval {:.4f}",
    "entropy": "entropy {:.2f}",
}


@contextmanager
def stopped_by_user() -> Generator[threading.Event]:
    """Ctrl-C sets the event instead of ending the program."""
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def follow(
    train: Callable[[Callable[[], bool]], Iterable[Progress]],
    configs: Sequence[Any],
    *,
    main: bool,
    names: Sequence[str] = (),
) -> None:
    """Run trainings, with their progress on standard error and previews beside their files, by the
    first process only; Ctrl-C stops cleanly.

    train: takes what says whether to stop, and gives reports.
    configs: the settings of each training.
    names: of the experts that shares are of.
    """
    written: list[Path] = []
    with stopped_by_user() as stopped:
        for report in train(stopped.is_set):
            if main and report.stage == "prepare" and (cut := getattr(report, "cut", 0)):
                typer.echo(f"{cut} requests lost their beginning to fit the window.", err=True)
            elif main:
                name = getattr(report, "name", "") if len(configs) > 1 else ""
                show(f"{name}  {figures_of(report, names)}".strip(), report)
                if report.preview is not None and report.stage == "train":
                    output: Path = configs[0].output
                    report.preview.save(output.with_name(f"{output.stem}-{report.step:06}.png"))
            if report.path is not None:
                written.append(report.path)
    finish(
        [*written, *[None] * (len(configs) - len(written))],
        stopped=stopped.is_set(),
        checkpoints=[config.checkpoint for config in configs],
        main=main,
    )


def follow_pictures(
    train: Callable[..., Iterable[Progress]],
    config: PictureTraining,
    *,
    model: str,
    vae: str | None,
    device: str,
) -> None:
    """Train on pictures, on `model`; see `follow`.

    train: takes the model, `config` and what says whether to stop (`cancelled`).
    vae: in place of the model's.
    device: empty for what accelerate chooses.
    """
    import torch

    from composer.diffusion.load import load_model
    from composer.training.processes import join_processes

    processes = join_processes(device)
    loaded = load_model(model, device=device or processes.device, dtype=torch.float32, vae=vae)
    follow(
        lambda cancelled: train(loaded, config, cancelled=cancelled),
        [config],
        main=processes.is_main_process,
    )


def figures_of(report: Any, names: Sequence[str] = ()) -> str:
    """The step and the figures of a training's or an export's report, those that it has.

    names: of the experts that shares are of.
    """
    parts = [f"{_STAGES[report.stage]} {report.step}/{report.total}"]
    losses: Mapping[str, float] = getattr(report, "losses", {})
    parts += [f"{name} {loss:.3f}" for name, loss in losses.items()]
    for field, words in _FIGURES.items():
        value = getattr(report, field, None)
        if value is not None and not (losses and field == "smoothed_loss"):
            parts.append(words.format(value))
    load: Sequence[float] = getattr(report, "load", ())
    named = names or [""] * len(load)
    if load:
        shares = [f"{name} {share:.2f}".strip() for name, share in zip(named, load, strict=True)]
        parts.append(" ".join(["load", *shares]))
    if skipped := getattr(report, "skipped", 0):
        parts.append(f"skipped {skipped}")
    return "  ".join(parts)


def show(line: str, report: Any, seconds_left: float | None = None) -> None:
    """A line on standard error that is written over by the next; in a log, now and then.

    report: counts `step` of `total`. seconds_left: if the report does not give them itself.
    """
    line = f"{line}  {left(getattr(report, 'seconds_left', seconds_left))}".rstrip()
    step, total = report.step, report.total
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{line}", err=True, nl=False)
    elif step % 20 == 0 or step == total:
        typer.echo(line, err=True)


def finish(
    written: Sequence[Path | None], *, stopped: bool, checkpoints: Sequence[Path], main: bool
) -> None:
    """The end of trainings, reported by the first process only: their files on standard output; or,
    where one was stopped before it wrote its own, what to go on from, and exit code 130.

    written: of each training, its file, or None.
    checkpoints: of each, where the state to resume from is kept.
    """
    if not main:
        return
    typer.echo(err=True)
    if stopped and None in written:
        kept = ", ".join(str(path) for path in checkpoints if path.is_file())
        typer.echo("Stopped." + (f" Go on with --resume: {kept}" if kept else ""), err=True)
        raise typer.Exit(130)
    for path in written:
        if path is not None:
            typer.echo(str(path))
