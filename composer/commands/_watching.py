"""Following a training on the command line: a line of progress, and Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from composer.clock import left


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


def show(line: str, *, step: int, total: int, seconds_left: float | None) -> None:
    """One line on standard error that is written over by the next; in a log, now and then."""
    line = f"{line}  {left(seconds_left)}".rstrip()
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{line}", err=True, nl=False)
    elif step % 20 == 0 or step == total:
        typer.echo(line, err=True)


def finish(
    written: Sequence[Path | None], *, stopped: bool, checkpoints: Sequence[Path], main: bool
) -> None:
    """The end of trainings, told by the first process only: their files on standard output; or,
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
