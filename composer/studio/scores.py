"""Scores of a grid's pictures, with no other weights than the model's and the LoRAs' unless the
user names some.

*Recognised*: by how much better LoRA i explains a picture than the bare model does,

    D_i = log ||v - v_0||^2 - log ||v - v_i||^2

(`training.gates.judges`), as a part of D_i of the picture that it makes alone of the same prompt
and seed, if the grid has one. *Unlike bare*: the mean difference of a pixel's values (of 255) from
the picture of the bare model, if the grid has one.

With a CLIP or DINO that the user names, of the vectors c of length 1 that it gives pictures and
texts: *CLIP-T* is c(picture) . c(prompt); *CLIP-I* and *DINO* of LoRA i are the mean of
c(picture) . c(r) over the pictures r of the grid that the LoRA makes alone, but the picture itself.

With reference pictures of what LoRAs teach, these are the r, and a LoRA that has none is not
compared. *Cropped CLIP-I* and *cropped DINO* are then the greatest mean of c(crop) . c(r) over the
squares of `crops_of`, for a LoRA that shares a picture with others is in a part of it; for a style,
which is everywhere, they are those of the whole picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from composer.clock import Clock
from composer.diffusion.clip import Encoder
from composer.diffusion.emphasis import parse_emphasis
from composer.experts.hashes import file_hash_of
from composer.files import write_atomically
from composer.fusions import LoraRow, Plan, Sum
from composer.outside import number as read_number, parse_object
from composer.studio.axes import ALONE, BARE
from composer.studio.events import Progress
from composer.studio.grid import Cells, Filled, GridFolder, Painted, Scores, keys_of
from composer.training.gates.judges import LEVELS, Judges
from composer.training.pictures import read_picture

if TYPE_CHECKING:
    from composer.studio.engine import Engine
    from composer.studio.requests import ComposeRequest

DRAWS = 8
"""Noise levels at which each picture is looked at; the same for all pictures."""
CROPS = (1.0, 0.75, 0.5)
"""Sides of the crops, as parts of the picture's shorter side."""
CROPPED = "cropped "
"""Before the name of a score: of the best crop."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a LoRA teaches, as an encoder sees the pictures of it that the user has.

    mean: (dim,) of their vectors. hash: of the pictures' files.
    everywhere: whether it is looked for in the whole picture alone.
    """

    mean: Tensor
    hash: str
    everywhere: bool


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A picture as an encoder sees it: (dim,), and by LoRA how like its reference a crop is at
    best."""

    vector: Tensor
    cropped: Mapping[str, float]


def score_cells(
    engine: Engine,
    folder: GridFolder,
    cells: Cells,
    cancelled: Callable[[], bool],
    *,
    asked: bool,
    encoders: Sequence[Encoder] = (),
    references: Mapping[str, Sequence[Path]] | None = None,
) -> Iterator[Filled | Progress]:
    """The scores of every cell that is painted, in order, after the progress of finding them. What
    was found of a picture before is read beside it, and is not found again.

    asked: whether the LoRAs are; else, and once cancelled, the seconds alone are given.
    encoders: a CLIP, a DINO, or both.
    references: by LoRA, pictures of what it teaches.
    """
    keys = keys_of(engine, cells)
    painted = [folder.find(key) for key in keys]
    paths = {name: path for _, _, plan in cells for name, path in plan.paths.items()}
    everyone = Plan(recipe=Sum(), rows={name: LoraRow(name=name) for name in paths}, paths=paths)
    seen: dict[int, dict[str, float]] = {}
    looks: dict[int, list[Seen]] = {}
    known_as = [
        {
            name: _reference(encoder, pictures, engine.read(name, paths[name]).info.role)
            for name, pictures in (references or {}).items()
        }
        for encoder in encoders
    ]
    clock = Clock(0, len(cells))
    for number, one in enumerate(painted if asked or encoders else ()):
        if cancelled():
            break
        if one is not None:
            with kept(one, keys[number]) as known:
                if asked:
                    seen[number] = _judged(engine, one, cells[number][1:], everyone, known)
                looks[number] = [
                    Seen(
                        vector=_vector(one, encoder, known),
                        cropped=_cropped(one, encoder, cells[number][2], of, known),
                    )
                    for encoder, of in zip(encoders, known_as, strict=True)
                ]
        yield Progress(
            step=number + 1,
            steps=len(cells),
            pictures=range(number, number + 1),
            count=len(cells),
            seconds_left=clock.seconds_left(number + 1),
            scoring=True,
        )
    others: dict[tuple[str, ...] | None, int] = {}
    others |= {cell.labels: number for number, (cell, _, _) in enumerate(cells)}
    similar = Similarities(encoders, known_as, looks, cells, painted)
    for number, one in enumerate(painted):
        if one is None:
            continue
        cell = cells[number][0]
        parts: dict[str, float] = {}
        for name, d in seen.get(number, {}).items():
            alone = others.get(cell.by(f"{ALONE}:{name}"), -1)
            own = seen.get(alone, {}).get(name, 0.0)
            if own > 0:
                parts[name] = d / own
        bare = others.get(cell.by(BARE)) if asked else None
        base = None if bare is None else painted[bare]
        scores = Scores(
            judged=seen.get(number, {}),
            recognised=parts,
            unlike_bare=None if base is None else _difference(one, base),
            clip_text=similar.to_prompt(number),
            likeness=similar.to_loras(number),
        )
        yield Filled(cell=number, painted=one, scores=scores)


@contextlib.contextmanager
def kept(one: Painted, key: str) -> Generator[dict[str, Any]]:
    """What is known of a picture, by name, to be added to; it is kept beside the picture and is
    gone when that is another, or was asked for by another key."""
    path = one.saved.scores_path
    of = [key, file_hash_of(one.saved.path)]
    told: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        told = parse_object(path.read_bytes())
    found: Any = told.get("scores")
    same = told.get("of") == of and isinstance(found, dict)
    known: dict[str, Any] = {**found} if same else {}
    before = dict(known)
    yield known
    if known != before:
        write_atomically(path, json.dumps({"of": of, "scores": known}).encode())


def _judged(
    engine: Engine,
    one: Painted,
    made: tuple[ComposeRequest, Plan],
    everyone: Plan,
    known: dict[str, Any],
) -> dict[str, float]:
    """D of each LoRA that is in a picture; those that are not known yet are asked.

    made: how it was asked for, and its plan. everyone: a plan with all LoRAs of the grid.
    """
    asked, plan = made
    names = {
        name: f"D {DRAWS} {LEVELS} {engine.read(name, path).sha256}"
        for name, path in sorted(plan.paths.items())
    }
    missing = [name for name, score in names.items() if not isinstance(known.get(score), float)]
    if missing:
        engine.mix(everyone)
        found = recognised(engine, one, asked.request.prompt, missing)
        known |= {names[name]: d for name, d in zip(missing, found, strict=True)}
    return {name: known[score] for name, score in names.items()}


def _vector(one: Painted, encoder: Encoder, known: dict[str, Any]) -> Tensor:
    """Of a picture, as it is known or found now."""
    name = f"{encoder.kind.name} {encoder.hash}"
    with contextlib.suppress(KeyError, TypeError, ValueError):
        found = torch.tensor([read_number(value) for value in known[name]])
        if found.shape == (encoder.width,):
            return found
    seen = encoder.look(one.saved.image())
    known[name] = [float(value) for value in seen]
    return seen


def _reference(encoder: Encoder, pictures: Sequence[Path], role: str) -> Reference:
    digest = hashlib.sha256(str(CROPS).encode())
    for path in pictures:
        digest.update(path.read_bytes())
    return Reference(
        mean=torch.stack([encoder.look(read_picture(path)) for path in pictures]).mean(0),
        hash=digest.hexdigest(),
        everywhere=role == "style",
    )


def _cropped(
    one: Painted,
    encoder: Encoder,
    plan: Plan,
    references: Mapping[str, Reference],
    known: dict[str, Any],
) -> dict[str, float]:
    """Of each LoRA in a picture that has a reference and is not everywhere, as it is known or found
    now."""
    wanted = {
        name: f"{CROPPED}{encoder.kind.name} {encoder.hash} {references[name].hash}"
        for name in plan.paths
        if name in references and not references[name].everywhere
    }
    missing = [name for name, score in wanted.items() if not isinstance(known.get(score), float)]
    if missing:
        crops = encoder.look_at(crops_of(one.saved.image()))
        for name in missing:
            known[wanted[name]] = float((crops @ references[name].mean).max())
    return {name: known[score] for name, score in wanted.items()}


def crops_of(image: Image.Image) -> list[Image.Image]:
    """Squares from edge to edge, half a side apart or less: 1 + 4 + 9 of a square picture."""
    found: list[Image.Image] = []
    for part in CROPS:
        side = max(round(part * min(image.size)), 1)
        across, down = (_places(length, side) for length in image.size)
        found += [image.crop((x, y, x + side, y + side)) for y in down for x in across]
    return found


def _places(length: int, side: int) -> list[int]:
    room = length - side
    count = -(-2 * room // side) + 1
    return [round(room * n / max(count - 1, 1)) for n in range(count)]


class Similarities:
    """Of the pictures of a grid to their prompts, and to references or what each LoRA makes alone.

    references: for each encoder, by LoRA; none for what LoRAs make alone.
    looks: of the cells of these numbers, one by each encoder.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        references: Sequence[Mapping[str, Reference]],
        looks: Mapping[int, Sequence[Seen]],
        cells: Cells,
        painted: Sequence[Painted | None],
    ) -> None:
        self._encoders, self._references = encoders, references
        self._looks, self._cells, self._painted = looks, cells, painted
        self._texts: dict[str, Tensor] = {}
        self._alone: dict[str, dict[Path, int]] = {}
        """By LoRA the numbers of the cells with its own pictures, each picture once."""
        for number in looks:
            cell, one = cells[number][0], painted[number]
            kind, _, name = ("" if cell.way is None else cell.labels[cell.way]).partition(":")
            if kind == ALONE and one is not None:
                self._alone.setdefault(name, {})[one.saved.path] = number

    def to_prompt(self, number: int) -> float | None:
        """CLIP-T; None without a CLIP."""
        prompt = self._cells[number][1].request.prompt
        for encoder, look in zip(self._encoders, self._looks.get(number, ()), strict=False):
            if encoder.kind.words:
                if prompt not in self._texts:
                    self._texts[prompt] = encoder.read(plain(prompt))
                return float(look.vector @ self._texts[prompt])
        return None

    def to_loras(self, number: int) -> dict[str, dict[str, float]]:
        """CLIP-I and DINO of each LoRA in the picture that has a reference; without any, of each
        that is seen alone in another picture."""
        found: dict[str, dict[str, float]] = {}
        names = sorted(self._cells[number][2].paths)
        for place, look in enumerate(self._looks.get(number, ())):
            score = IMAGE_SCORES[self._encoders[place].kind.name]
            references = self._references[place]
            if not references:
                found[score] = self._to_alone(number, place)
                continue
            of = {n: float(look.vector @ references[n].mean) for n in names if n in references}
            found[score] = of
            found[f"{CROPPED}{score}"] = {n: look.cropped.get(n, of[n]) for n in of}
        return {score: of for score, of in found.items() if of}

    def _to_alone(self, number: int, place: int) -> dict[str, float]:
        one, vector = self._painted[number], self._looks[number][place].vector
        of: dict[str, float] = {}
        for name in sorted(self._cells[number][2].paths):
            alone = self._alone.get(name, {})
            others = [n for path, n in alone.items() if one and path != one.saved.path]
            if others:
                of[name] = fmean(float(vector @ self._looks[n][place].vector) for n in others)
        return of


IMAGE_SCORES = {"CLIP": "CLIP-I", "DINO": "DINO"}
"""How the field names the likeness of pictures, by the kind of encoder."""


def plain(prompt: str) -> str:
    """A prompt without the marks of emphasis, as a CLIP reads it."""
    stretches = parse_emphasis(prompt)
    return "".join(f"{' ' * one.new_chunk}{one.text}" for one in stretches)


@torch.no_grad()
def recognised(engine: Engine, one: Painted, prompt: str, names: Sequence[str]) -> list[float]:
    """D of these LoRAs of the engine's mixture in a picture, the mean over `DRAWS` noise levels."""
    if engine.mixture is None:
        raise ValueError("no LoRA is attached: mix those that are asked first.")
    image = np.asarray(one.saved.image(), dtype=np.float32) / 255
    clean = engine.model.to_latents(torch.tensor(image).permute(2, 0, 1)[None])
    judges = Judges(engine.model, engine.mixture)
    generator = torch.Generator().manual_seed(0)
    experts = [engine.mixture.names.index(name) for name in names]
    with engine.mixture.weighing_rows():
        found = judges.recognise(
            clean.expand(DRAWS, -1, -1, -1), [prompt] * DRAWS, experts, generator
        )
    return [float(one) for one in found.mean(1)]


def _difference(one: Painted, other: Painted) -> float | None:
    """None for pictures of two sizes."""
    first, second = (np.asarray(each.saved.image(), dtype=np.float32) for each in (one, other))
    if first.shape != second.shape:
        return None
    return float(np.abs(first - second).mean())
