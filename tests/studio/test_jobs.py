from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from composer.studio.jobs import JobQueue


def waiting(place: int) -> str:
    return f"waiting {place}"


def test_jobs_run_one_at_a_time_in_their_order() -> None:
    queue: JobQueue[str] = JobQueue()
    active, order = [], []

    def work(name: str) -> Callable[[Callable[[], bool]], Iterator[str]]:
        def run(cancelled: Callable[[], bool]) -> Iterator[str]:
            active.append(name)
            assert active == [name]
            yield f"{name} begins"
            time.sleep(0.02)
            order.append(active.pop())

        return run

    jobs = [queue.submit(work(name)) for name in "abc"]
    told = [list(queue.follow(job, waiting=waiting, poll=0.01)) for job in jobs]
    assert order == ["a", "b", "c"]
    assert [events[-1] for events in told] == ["a begins", "b begins", "c begins"]


def test_a_waiting_job_tells_its_place_and_can_be_cancelled_by_its_owner_alone() -> None:
    queue: JobQueue[str] = JobQueue()
    go = threading.Event()

    def blocked(cancelled: Callable[[], bool]) -> Iterator[str]:
        go.wait(5)
        yield "cancelled" if cancelled() else "done"

    first = queue.submit(blocked, owner="ann", title="first")
    second = queue.submit(blocked, owner="ben", title="second")
    events = queue.follow(second, waiting=waiting, poll=0.01)
    assert next(events) == "waiting 1"
    assert [(line.title, line.place) for line in queue.lines()] == [("first", 0), ("second", 1)]
    assert queue.cancel("ben") == 1
    assert list(events) == []  # it never ran
    go.set()
    assert list(queue.follow(first, waiting=waiting)) == ["done"]


def test_an_error_reaches_the_follower_and_the_queue_goes_on() -> None:
    queue: JobQueue[str] = JobQueue()

    def broken(cancelled: Callable[[], bool]) -> Iterator[str]:
        yield "begun"
        raise ValueError("broken")

    def sound(cancelled: Callable[[], bool]) -> Iterator[str]:
        yield "sound"

    events = queue.follow(queue.submit(broken), waiting=waiting)
    assert next(events) == "begun"
    with pytest.raises(ValueError, match="broken"):
        next(events)
    assert list(queue.follow(queue.submit(sound), waiting=waiting)) == ["sound"]


def test_a_follower_that_goes_away_ends_its_job() -> None:
    queue: JobQueue[str] = JobQueue()
    ended = threading.Event()

    def endless(cancelled: Callable[[], bool]) -> Iterator[str]:
        while not cancelled():
            yield "step"
            time.sleep(0.005)
        ended.set()

    events = queue.follow(queue.submit(endless), waiting=waiting)
    assert next(events) == "step"
    events.close()
    assert ended.wait(5)
