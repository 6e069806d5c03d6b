"""Judge pictures of the model: unseen prompts, what the oracle sees, and what is asked for."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image
from torch import Tensor

from composer.evaluation.sheets import Cell
from toybox.captions import caption, plain_caption
from toybox.oracle import Verdict, score
from toybox.render import render
from toybox.stage_vae import to_tensor
from toybox.understand import understand
from toybox.world import MOST_FIGURES, Scene, random_scene

NAMES = {1: "one thing in a place", 2: "two things, each on its side"}
BARS: dict[str, float] = {NAMES[1]: 0.95, NAMES[2]: 0.85, "colour words": 0.90}
CRISP, SECONDS, MEGABYTES = 0.85, 1.0, 60


@dataclass(frozen=True, kw_only=True)
class Case:
    """A picture to be made: what it should show, and its prompt."""

    scene: Scene
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A picture and, for each head that can be asked of its scene, whether it is right."""

    case: Case
    image: Image.Image
    verdict: Verdict

    @cached_property
    def score(self) -> dict[str, bool]:
        """Right or wrong by head."""
        return score(self.case.scene, self.verdict)

    def right(self, heads: Iterable[str] | None = None) -> bool:
        """Whether all these heads are right (all that can be asked, if none are named)."""
        return all(self.score[h] for h in (self.score if heads is None else heads))

    def cell(self) -> Cell:
        """For a contact sheet: the prompt and, where it is wrong, what was seen instead."""
        wrong = [
            f"{head.replace('_', ' ')}: {self.verdict.answers[head] or 'none'}"
            for head, right in self.score.items()
            if not right
        ]
        seen = f"\nseen as {', '.join(wrong)}" if wrong else ""
        return Cell(image=self.image, caption=self.case.prompt + seen, right=not wrong)


def cases(count: int) -> list[Case]:
    """`count` pictures of each number of figures, half of them in the canonical wording and half
    in another."""
    made: list[Case] = []
    for number in range(1, MOST_FIGURES + 1):
        rng = random.Random(f"measure {number}")
        counts = [float(number == n) for n in range(1, MOST_FIGURES + 1)]
        for index in range(count):
            scene = random_scene(rng, counts=counts)
            prompt = unseen_prompt(scene, rng) if index % 2 else plain_caption(scene)
            made.append(Case(scene=scene, prompt=prompt, seed=70_000 + len(made)))
    return made


def unseen_prompt(scene: Scene, rng: random.Random) -> str:
    """A random wording that names the background: one left out could be neither right nor wrong."""
    while True:
        prompt = caption(scene, rng)
        if understand(prompt) is not None:
            return prompt


def answers(judged: Sequence[Judged]) -> dict[str, list[bool]]:
    """By bar, for each picture whether every answer about it is right; for colours each word."""
    found: dict[str, list[bool]] = {name: [] for name in BARS}
    for one in judged:
        found[NAMES[len(one.case.scene.figures)]].append(one.right())
        found["colour words"] += [one.score[h] for h in one.score if h.endswith("_colour")]
    return found


def crispness(judged: Sequence[Judged]) -> float:
    """The gradient energy of pictures as a part of that of renderings of the same scenes."""
    drawn = [render(one.case.scene, random.Random(f"measure {one.case.seed}")) for one in judged]
    made = gradient_energy(to_tensor([one.image.convert("RGB") for one in judged]))
    return float(made.mean() / gradient_energy(to_tensor(drawn)).mean())


def gradient_energy(x: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, of each picture: how crisp it is."""
    dx = x.diff(dim=-1).pow(2).flatten(1).mean(1)
    return dx + x.diff(dim=-2).pow(2).flatten(1).mean(1)
