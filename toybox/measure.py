"""Judge a finished model: pictures of unseen prompts by the oracle, beside what is asked for."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from composer.diffusion.load import load_model
from composer.evaluation.sampling import Sampling, Shot, sample
from composer.evaluation.sheets import Cell, contact_sheet
from toybox.building import megabytes
from toybox.captions import caption, plain_caption
from toybox.oracle import Oracle, Verdict, score
from toybox.render import render
from toybox.stage_vae import gradient_energy, to_tensor
from toybox.understand import understand
from toybox.world import MOST_FIGURES, Scene, random_scene

NAMES = {
    1: "one thing in a place",
    2: "two things, each on its side",
    3: "three things, each in its place",
}
BARS: dict[str, float] = {NAMES[1]: 0.98, NAMES[2]: 0.95, NAMES[3]: 0.80, "colour words": 0.97}
CRISP, SECONDS, MEGABYTES = 0.85, 1.5, 90
SAMPLING = Sampling(steps=20, batch_size=16)


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


def measure(
    folder: Path, *, count: int = 100, device: str = "cpu", sheet: Path | None = None
) -> list[str]:
    """Make `count` pictures of each number of figures, and say line by line what came of them.

    sheet: where a contact sheet of the first ones goes, with what was seen instead of what was
        asked for.
    """
    model = load_model(str(folder), device=device)
    oracle = Oracle.load(folder / "oracle")
    some = cases(count)
    shots = [Shot(prompt=case.prompt, seed=case.seed) for case in some]
    begun = time.perf_counter()
    images: list[Image.Image] = []
    for image in sample(model, shots, SAMPLING):
        images.append(image)
        if len(images) % 50 == 0:
            print(f"{len(images)} of {len(shots)} pictures", flush=True)
    seconds = (time.perf_counter() - begun) / len(shots)
    verdicts = oracle.judge(images)
    judged = [
        Judged(case=case, image=image, verdict=verdict)
        for case, image, verdict in zip(some, images, verdicts, strict=True)
    ]
    lines: list[str] = []
    for name, right in answers(judged).items():
        if right:
            share = sum(right) / len(right)
            said = f"{name}: {share:.1%} of {len(right)} (at least {BARS[name]:.0%})"
            lines.append(said + _missed(share >= BARS[name]))
    crisp = crispness(judged)
    said = f"gradient energy, as a part of renderings': {crisp:.2f} (at least {CRISP})"
    lines.append(said + _missed(crisp >= CRISP))
    said = f"seconds a picture of {SAMPLING.steps} steps, in batches of {SAMPLING.batch_size}"
    said += f" on {torch.get_num_threads()} threads: {seconds:.2f} (at most {SECONDS})"
    lines.append(said + _missed(seconds <= SECONDS))
    size = megabytes(folder)
    lines.append(f"MB: {size:.0f} (at most {MEGABYTES})" + _missed(size <= MEGABYTES))
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        shown = [i for n in range(MOST_FIGURES) for i in range(n * count, n * count + count)[:16]]
        cells = [judged[i].cell() for i in shown]
        contact_sheet(cells, columns=8).save(sheet, quality=90)
        lines.append(f"the first pictures: {sheet}")
    return lines


def _missed(met: bool) -> str:
    return "" if met else ": MISSED"
