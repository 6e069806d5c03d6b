"""Who works with the processor now: pictures come first, a training goes on between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

POLL = 0.1  # seconds between two looks at what no condition signals


class Turns:
    """One thing at a time: a picture job as a whole, or one step of a training.

    A picture waits at most for the step that is being made. So pictures come out the same, bit for
    bit, and as fast as if nothing were trained.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pictures = 0
        self._stepping = False

    @property
    def pictures_first(self) -> bool:
        """Whether a picture is being made, or waits for the step that is being made."""
        return self._pictures > 0

    @contextmanager
    def picture(self) -> Generator[None, None, None]:
        """While a picture job runs; waits for the step that is being made."""
        with self._changed:
            self._pictures += 1
            self._changed.wait_for(lambda: not self._stepping)
        try:
            yield
        finally:
            with self._changed:
                self._pictures -= 1
                self._changed.notify_all()

    @contextmanager
    def step(self, stopped: Callable[[], bool]) -> Generator[None, None, None]:
        """While one step of a training is made; waits until no picture is, or until stopped."""
        with self._changed:
            while self._pictures and not stopped():
                self._changed.wait(POLL)
            self._stepping = True
        try:
            yield
        finally:
            with self._changed:
                self._stepping = False
                self._changed.notify_all()
