"""Eight text tasks with one right answer each, most of them on lists of words that look alike: the
task's name alone says which LoRA is meant."""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.mixlora.tasks import TASKS as SKILLS
from composer.language.records import Record
from toybox.world import THINGS

Task = Callable[[random.Random], tuple[str, str]]
_WORDS = tuple(word for word in THINGS if " " not in word)


def _of(count: tuple[int, int], change: Callable[[list[str]], list[str]]) -> Task:
    """A task on so many different words."""

    def make(rng: random.Random) -> tuple[str, str]:
        words = rng.sample(_WORDS, rng.randint(*count))
        return " ".join(words), " ".join(change(words))

    return make


TASKS: dict[str, Task] = {
    "swap": _of((2, 2), lambda words: words[::-1]),
    "double": _of((2, 3), lambda words: [twice for word in words for twice in (word, word)]),
    "scene": SKILLS["scene"],
    "last": _of((3, 5), lambda words: words[-1:]),
    "tags": SKILLS["tags"],
    "first": _of((3, 5), lambda words: words[:1]),
    "join": _of((2, 4), lambda words: " and ".join(words).split(" ")),
    "sort": _of((2, 2), sorted),
}
"""By name, in the order in which the study takes them: from a random state to what is asked and the
one right answer."""


def draw(task: str, count: int, seed: str, *, unlike: frozenset[str] = frozenset()) -> list[Record]:
    """Requests of one task with their answers, none that is in `unlike`; a small task repeats."""
    rng = random.Random(f"{task} {seed}")
    found: list[Record] = []
    while len(found) < count:
        asked, answer = TASKS[task](rng)
        prompt = f"{task}: {asked} =>"
        if prompt not in unlike:
            found.append(Record(prompt=prompt, answer=answer, origin=f"{task} {len(found)}"))
    return found
