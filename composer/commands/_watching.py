"""Following a training on the command line: a line of progress, and Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

import typer


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
    if seconds_left is not None:
        minutes, seconds = divmod(round(seconds_left), 60)
        line += f"  {minutes}:{seconds:02} left"
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{line}", err=True, nl=False)
    elif step % 20 == 0 or step == total:
        typer.echo(line, err=True)
