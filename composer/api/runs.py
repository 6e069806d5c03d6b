"""The pictures that are made for callers: each call is one of the studio's jobs, as the page's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from anyio.to_thread import run_sync

from composer.errors import ComposerError
from composer.studio import Finished, PictureSaved, Progress, SavedPicture, Started, Studio

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_CALLS = 64
"""That wait or are at work at once, of all callers."""
POLL = 0.25  # seconds between two looks whether the caller is still there


class Busy(ComposerError):
    """There are too many calls already; it may be tried again later."""


@dataclass(kw_only=True, eq=False)
class Run:
    """One call: how far it is, and in the end what came of it.

    caller: from where it was made. owner: whose job it is for the studio, no other call's.
    stopped: whether it was interrupted.
    others: the events that a picture's job does not have, in their order.
    """

    caller: str
    owner: str
    stopped: bool = False
    progress: Progress | None = None
    preview: Image | None = None
    notes: tuple[str, ...] = ()
    pictures: list[SavedPicture] = field(default_factory=list[SavedPicture])
    others: list[Any] = field(default_factory=list[Any])
    over: Finished = field(default_factory=lambda: Finished(cancelled=True))

    def take(self, event: object) -> None:
        """What just happened."""
        if isinstance(event, Progress):
            self.progress, self.preview = event, event.preview or self.preview
        elif isinstance(event, Started):
            self.notes = event.notes
        elif isinstance(event, PictureSaved):
            self.pictures.append(event.saved)
        elif isinstance(event, Finished):
            self.over = event
        else:
            self.others.append(event)


class Runs:
    """The calls that are at work, each followed in a thread of its own."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._runs: dict[str, Run] = {}
        self._numbers = itertools.count(1)
        self._limiter = anyio.CapacityLimiter(MOST_CALLS)

    def of(self, caller: str) -> tuple[Run, ...]:
        """The calls of one caller, the oldest first."""
        return tuple(run for run in tuple(self._runs.values()) if run.caller == caller)

    def interrupt(self, caller: str) -> int:
        """Stop a caller's jobs within one step, also those that wait. Returns how many."""
        runs = self.of(caller)
        for run in runs:
            self._stop(run)
        return len(runs)

    def _stop(self, run: Run) -> None:
        run.stopped = True  # first: its job may not be there yet
        self._studio.interrupt(run.owner)

    async def follow(
        self,
        caller: str,
        begin: Callable[[str], Iterable[Any]],
        gone: Callable[[], Awaitable[bool]] | None = None,
    ) -> Run:
        """Wait for a job to its end.

        begin: asks the studio for the job, in a thread, for the owner that it is given.
        gone: whether the caller has hung up; the job is then stopped.

        Raises:
            Busy: there are MOST_CALLS.
            ComposerError: what is asked for cannot be.
        """
        if len(self._runs) >= MOST_CALLS:
            raise Busy(f"{MOST_CALLS} calls are waiting already. Try again later.")
        owner = f"call {next(self._numbers)} of {caller}"
        run = self._runs[owner] = Run(caller=caller, owner=owner)

        def work() -> None:
            events = begin(owner)
            if run.stopped:
                self._stop(run)
            for event in events:
                run.take(event)

        task = asyncio.ensure_future(run_sync(work, limiter=self._limiter))
        try:
            while not (await asyncio.wait({task}, timeout=POLL))[0]:
                if gone is not None and await gone():
                    self._stop(run)
            await task
        finally:
            if not task.done():  # the server is being ended
                self._stop(run)
            del self._runs[owner]
        return run


def caller_of(request: Any) -> str:
    """From where a request comes: whose jobs it can see and stop."""
    client = getattr(request, "client", None)
    return "unknown" if client is None else str(client.host)
