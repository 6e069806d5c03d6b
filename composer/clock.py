"""How fast work goes on, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

RECENT = 30
"""The pace is about the mean of so many steps, for a machine may become slower meanwhile."""


class Clock:
    """Seconds left of `total` steps, at the pace of the last ones; pauses do not count.

    What is done first counts only until more is: it is slower, while memory is allocated and what
    is compiled is compiled.

    start: steps that were done before, as those of a training that is resumed.
    total: None or 0 where it is not known.
    now: gives seconds, as `time.monotonic` does.
    """

    def __init__(
        self,
        start: int = 0,
        total: int | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self._now = total, now
        self._done, self._since = start, now()
        self._pace: float | None = None
        self._counted = 0  # steps that the pace is the mean of; 0 too for what was done first

    def seconds_left(self, done: int) -> float | None:
        """Call it when `done` steps are, `start` among them; None as long as it is not known."""
        steps = done - self._done
        if steps > 0:
            now = self._now()
            pace = (now - self._since) / steps
            if self._pace is None or not self._counted:
                self._counted = 0 if self._pace is None else steps
                self._pace = pace
            else:
                self._counted = min(self._counted + steps, max(RECENT, steps))
                self._pace += (pace - self._pace) * steps / self._counted
            self._done, self._since = done, now
        if self._pace is None or not self.total:
            return None
        return self._pace * max(self.total - done, 0)

    @contextmanager
    def paused(self) -> Generator[None]:
        """What happens meanwhile does not count as work."""
        begun = self._now()
        try:
            yield
        finally:
            self._since += self._now() - begun


def duration(seconds: float) -> str:
    """In words: "4.2 s", "61 s", "3 min", "2.5 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def left(seconds: float | None) -> str:
    """ "61 s left"; empty where it is not known."""
    return "" if seconds is None else f"{duration(seconds)} left"
