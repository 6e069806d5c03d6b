"""Judge a finished model: pictures of unseen prompts by the oracle, beside what is asked for."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from composer.diffusion.load import load_model
from composer.evaluation.sampling import Sampling, Shot, sample
from composer.evaluation.sheets import Cell, contact_sheet
from toybox.building import megabytes
from toybox_128.captions import caption, plain_caption
from toybox_128.oracle import Oracle, Verdict, score
from toybox_128.render import render
from toybox_128.stage_vae import gradient_energy, to_tensor
from toybox_128.understand import understand
from toybox_128.world import MOST_FIGURES, Scene, random_scene

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


def cases(count: int) -> list[Case]:
    """`count` pictures of each number of figures, half of them in the canonical wording and half
    in another that names the place: one left out could be neither right nor wrong."""
    made: list[Case] = []
    for number in range(1, MOST_FIGURES + 1):
        rng = random.Random(f"measure {number}")
        counts = (float(number == 1), float(number == 2), float(number == 3))
        for index in range(count):
            scene = random_scene(rng, counts=counts)
            prompt = unseen_prompt(scene, rng) if index % 2 else plain_caption(scene)
            made.append(Case(scene=scene, prompt=prompt, seed=70_000 + len(made)))
    return made


def unseen_prompt(scene: Scene, rng: random.Random) -> str:
    """A random wording that names the background."""
    while True:
        prompt = caption(scene, rng)
        if understand(prompt) is not None:
            return prompt


def answers(some: Sequence[Case], verdicts: Sequence[Verdict]) -> dict[str, list[bool]]:
    """By bar, for each picture whether every answer about it is right; for colours each word."""
    found: dict[str, list[bool]] = {name: [] for name in BARS}
    for case, verdict in zip(some, verdicts, strict=True):
        right = score(case.scene, verdict)
        found[NAMES[len(case.scene.figures)]].append(all(right.values()))
        found["colour words"] += [right[head] for head in right if head.endswith("_colour")]
    return found


def crispness(some: Sequence[Case], images: Sequence[Image.Image]) -> float:
    """The gradient energy of pictures as a part of that of renderings of the same scenes."""
    drawn = [render(case.scene, random.Random(f"measure {case.seed}")) for case in some]
    made = gradient_energy(to_tensor([image.convert("RGB") for image in images]))
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
    lines: list[str] = []
    for name, right in answers(some, verdicts).items():
        if right:
            share = sum(right) / len(right)
            said = f"{name}: {share:.1%} of {len(right)} (at least {BARS[name]:.0%})"
            lines.append(said + _missed(share >= BARS[name]))
    crisp = crispness(some, images)
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
        cells = [_cell(some[i], images[i], verdicts[i]) for i in shown]
        contact_sheet(cells, columns=8).save(sheet, quality=90)
        lines.append(f"the first pictures: {sheet}")
    return lines


def _missed(met: bool) -> str:
    return "" if met else ": MISSED"


def _cell(case: Case, image: Image.Image, verdict: Verdict) -> Cell:
    wrong = [
        f"{head.replace('_', ' ')}: {verdict.answers[head] or 'none'}"
        for head, right in score(case.scene, verdict).items()
        if not right
    ]
    seen = f"\nseen as {', '.join(wrong)}" if wrong else ""
    return Cell(image=image, caption=case.prompt + seen, right=not wrong)
