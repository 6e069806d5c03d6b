"""One job at a time, first come, first served, on one thread of its own.

The work does not run in the caller's thread: a browser tab that vanishes leaves its iterator
hanging, and an iterator that hangs must hold neither the model nor the queue.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Event = TypeVar("Event")


@dataclass(frozen=True)
class Over:
    """The last thing in a job's events: how it ended."""

    error: BaseException | None = None


@dataclass(kw_only=True)
class Job(Generic[Event]):
    """Work that is asked for: what to run, for whom, and the events that came so far."""

    number: int
    owner: str
    title: str
    work: Callable[[Callable[[], bool]], Iterable[Event]]
    events: queue.SimpleQueue[Event | Over]
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A line of the visible queue; place 0 is the job that runs."""

    number: int
    owner: str
    title: str
    place: int


class JobQueue(Generic[Event]):
    """Runs jobs one after the other. `work(cancelled)` yields events and asks `cancelled()`.

    around: entered before each job and left after it.
    """

    def __init__(self, around: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._around = around
        self._numbers = itertools.count(1)
        self._waiting: list[Job[Event]] = []
        self._running: Job[Event] | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(
        self,
        work: Callable[[Callable[[], bool]], Iterable[Event]],
        *,
        owner: str = "",
        title: str = "",
    ) -> Job[Event]:
        """Put work at the end of the queue."""
        events: queue.SimpleQueue[Event | Over] = queue.SimpleQueue()
        number = next(self._numbers)
        job = Job(number=number, owner=owner, title=title, work=work, events=events)
        with self._changed:
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="studio", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return job

    def cancel(self, owner: str | None = None) -> int:
        """Stop the jobs of one owner (None: the running job). Returns how many they are."""
        with self._changed:
            running = [self._running] if self._running is not None else []
            if owner is None:
                stopped = running
            else:
                stopped = [job for job in (*running, *self._waiting) if job.owner == owner]
            for job in stopped:
                job.cancelled.set()
                if job in self._waiting:
                    self._waiting.remove(job)
                    job.events.put(Over())
            return len(stopped)

    def withdraw(self, job: Job[Event]) -> None:
        """Nobody waits for this job any more."""
        with self._changed:
            job.cancelled.set()
            if job in self._waiting:
                self._waiting.remove(job)

    def place(self, job: Job[Event]) -> int:
        """How many jobs come before this one (0: it runs, or it is over)."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def lines(self) -> tuple[Waiting, ...]:
        """The visible queue, the running job first."""
        with self._changed:
            jobs = [*([self._running] if self._running else []), *self._waiting]
            first = 0 if self._running else 1
            return tuple(
                Waiting(number=job.number, owner=job.owner, title=job.title, place=place)
                for place, job in enumerate(jobs, start=first)
            )

    def follow(
        self, job: Job[Event], *, waiting: Callable[[int], Event], poll: float = 0.25
    ) -> Iterator[Event]:
        """The job's events as they come; before them `waiting(place)` whenever its place changes.

        Closing the iterator cancels the job. The job's own error is raised here.
        """
        shown: int | None = None
        try:
            while True:
                try:
                    event = job.events.get(timeout=poll if shown is not None else 0.02)
                except queue.Empty:
                    place = self.place(job)
                    if place != (shown or 0):
                        yield waiting(place)
                    shown = place
                    continue
                if isinstance(event, Over):
                    if event.error is not None:
                        raise event.error
                    return
                yield event
        finally:
            self.withdraw(job)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._waiting:
                    self._changed.wait()
                job = self._running = self._waiting.pop(0)
            error: BaseException | None = None
            try:
                with self._around():
                    for event in job.work(job.cancelled.is_set):
                        job.events.put(event)
            except BaseException as raised:  # raised again where the job is followed
                error = raised
            job.events.put(Over(error))
