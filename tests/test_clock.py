"""Pace and time left, on a clock that the test moves."""

from __future__ import annotations

import pytest

from composer.clock import RECENT, Clock, duration, left


class Time:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def take(self, clock: Clock, *steps: float, done: int = 0) -> float | None:
        """Steps that last so long, one after the other, after `done`; what is left then."""
        found: float | None = None
        for number, seconds in enumerate(steps, start=done + 1):
            self.now += seconds
            found = clock.seconds_left(number)
        return found


@pytest.fixture
def time() -> Time:
    return Time()


def test_the_time_left_is_that_of_the_steps_that_are_left(time: Time) -> None:
    clock = Clock(total=10, now=time)
    assert time.take(clock, 2, 2, 2) == 2 * 7
    assert clock.seconds_left(3) == 2 * 7  # asking again changes nothing
    assert time.take(clock, *[2] * 7, done=3) == 0
    assert clock.seconds_left(12) == 0


def test_a_slow_first_step_counts_only_until_there_are_others(time: Time) -> None:
    clock = Clock(total=10, now=time)
    assert time.take(clock, 60) == 60 * 9
    assert time.take(clock, 1, done=1) == 1 * 8
    assert time.take(clock, 3, done=2) == 2 * 7


def test_pauses_do_not_count_however_they_end(time: Time) -> None:
    clock = Clock(total=10, now=time)
    time.take(clock, 1, 1)
    with clock.paused():
        time.now += 500
    time.now += 0.5
    with pytest.raises(ValueError), clock.paused():
        time.now += 500
        raise ValueError
    assert time.take(clock, 0.5, done=2) == 7
    with clock.paused():
        time.now += 500
    assert time.take(clock, 1, done=3) == 6


def test_resumed_work_is_as_fast_as_what_is_done_now(time: Time) -> None:
    clock = Clock(800, 1000, now=time)
    assert clock.seconds_left(800) is None
    assert time.take(clock, 60, 2, done=800) == 2 * 198


def test_nothing_is_known_of_an_unknown_total_until_it_is_known(time: Time) -> None:
    for unknown in (None, 0):
        clock = Clock(total=unknown, now=time)
        assert time.take(clock, 1, 1) is None
        clock.total = 4
        assert clock.seconds_left(2) == 2
    assert Clock(total=5, now=time).seconds_left(0) is None


def test_several_steps_that_are_told_at_once_count_as_many(time: Time) -> None:
    clock = Clock(total=100, now=time)
    for seconds, done in ((50, 10), (8, 18), (4, 20)):
        time.now += seconds
        found = clock.seconds_left(done)
    assert found == pytest.approx(1.2 * 80)


def test_the_pace_follows_a_machine_that_becomes_slower(time: Time) -> None:
    clock = Clock(total=10_000, now=time)
    time.take(clock, *[1.0] * 1000)
    found = time.take(clock, *[3.0] * 4 * RECENT, done=1000)
    assert found == pytest.approx(3 * (9000 - 4 * RECENT), rel=0.02)


def test_one_outlier_among_many_steps_changes_little(time: Time) -> None:
    clock = Clock(total=1000, now=time)
    found = time.take(clock, *[1.0] * 99, 4.0)
    assert found == pytest.approx(900 * (1 + 3 / RECENT))


def test_times_are_told_in_words() -> None:
    told = [duration(seconds) for seconds in (0.2, 9.96, 61, 200, 9000)]
    assert told == ["0.2 s", "10 s", "61 s", "3 min", "2.5 h"]
    assert (left(61), left(0), left(None)) == ("61 s left", "0.0 s left", "")
