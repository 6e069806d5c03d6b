"""Text tasks of several distinct skills, each with one right answer, made by our own generators."""

from __future__ import annotations

import random
from collections.abc import Callable

from composer.language.records import Record
from toybox.captions import SHORT, caption, plain_caption
from toybox.understand import understand
from toybox.world import STYLES, THINGS, Scene, random_scene

_WORDS = tuple(word for word in THINGS if " " not in word)


def _reverse(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(_WORDS, rng.randint(3, 5))
    return " ".join(words), " ".join(reversed(words))


def _sort(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(_WORDS, rng.randint(3, 5))
    return " ".join(words), " ".join(sorted(words))


def _tags(rng: random.Random) -> tuple[str, str]:
    """A caption in any wording to the bare things and the place."""
    while True:
        scene = random_scene(rng)
        said = caption(scene, rng)
        found = understand(said)
        if found is not None and not found.listed:
            return said, ", ".join(_parts(scene))


def _scene(rng: random.Random) -> tuple[str, str]:
    """Things, place and style to the canonical caption."""
    scene = random_scene(rng)
    styled = Scene(
        figures=scene.figures, background=scene.background, style=rng.choice((None, *STYLES))
    )
    parts = [*_parts(scene), *([styled.style] if styled.style else [])]
    return ", ".join(parts), plain_caption(styled)


def _add(rng: random.Random) -> tuple[str, str]:
    left, right = rng.randrange(100), rng.randrange(100)
    return f"{left} plus {right}", str(left + right)


def _parts(scene: Scene) -> list[str]:
    figures = [f"{figure.colour or ''} {figure.name}".strip() for figure in scene.figures]
    if scene.background.startswith("plain "):
        return [*figures, f"{scene.background.removeprefix('plain ')} background"]
    return [*figures, SHORT.get(scene.background, scene.background)]


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "reverse": _reverse,
    "sort": _sort,
    "tags": _tags,
    "scene": _scene,
    "add": _add,
}
"""By name: from a random state to what is asked and the one right answer."""


def draw(task: str, count: int, seed: str, *, unlike: frozenset[str] = frozenset()) -> list[Record]:
    """Different requests of one task with their answers, none that is in `unlike`."""
    rng = random.Random(f"{task} {seed}")
    found: dict[str, Record] = {}
    while len(found) < count:
        asked, answer = TASKS[task](rng)
        prompt = f"{task}: {asked} =>"
        if prompt not in unlike:
            found[prompt] = Record(prompt=prompt, answer=answer, origin=f"{task} {len(found)}")
    return list(found.values())
