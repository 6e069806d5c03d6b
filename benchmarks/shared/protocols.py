"""A published protocol on the user's own model, LoRAs and pictures: its options, the pictures of
every way in one folder, and tables of their scores."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.shared.intervals import interval_columns
from benchmarks.shared.markdown import results_section
from benchmarks.shared.options import plain_parser, publish
from benchmarks.shared.pictures import PictureCount
from benchmarks.shared.results import Row, Value, read_results
from benchmarks.shared.ways import title_of_way
from composer.clock import left
from composer.commands.generate import read_size
from composer.diffusion.clip import CLIP, DINO, check_encoder
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.evaluation.intervals import FEWEST, bootstrap_mean
from composer.fusions import Gates, LoraRow, Sum
from composer.fusions.registry import read_recipe
from composer.studio import ComposeRequest, Studio
from composer.studio.axes import ALONE, BARE, Axis, GridCell, cells_of, read_axis, to_way
from composer.studio.events import Progress
from composer.studio.grid import LEAST, Filled, GridFolder
from composer.studio.grid_report import SCORES
from composer.training.pictures import pictures_in

ALL, GAINS = "All sets", "All sets: gain over the weighted sum"
UNITS = {"D": " (log)", "unlike bare": " (of 255)", "seconds": " (s)"}
"""Of the scores that are no cosines or parts; these are shown a hundred times as large."""
EVERY = 10
"""Seconds between two lines of progress."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """LoRAs that are fused in one picture, and the prompt that names all of them.

    ways: by the key of a grid's way what the tables call it; several may be called alike.
    """

    name: str
    loras: tuple[str, ...]
    prompt: str
    ways: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One picture of a composition, by a way of this title."""

    composition: Composition
    title: str
    seed: int
    filled: Filled


def protocol_parser(name: str, description: str, *, count: int) -> argparse.ArgumentParser:
    """A parser with the options of all protocols. count: of seeds, as published."""
    found = plain_parser(name, description)
    found.set_defaults(results=None)
    found.add_argument("--model", required=True, help="folder, checkpoint file or hub name")
    found.add_argument("--vae", help="in place of the model's")
    found.add_argument("--loras", type=Path, required=True, help="folder of the LoRA files")
    found.add_argument(
        "--out", type=Path, required=True, help="folder of all that is made; continued after a stop"
    )
    found.add_argument("--sets", type=int, help="the first so many alone")
    found.add_argument("--ways", default="", help="such as weighted,ties:density=0.3")
    found.add_argument(
        "--count", type=int, default=count, help="seeds of each prompt and way (%(default)s)"
    )
    found.add_argument("--seed", type=int, help="the first; the others count up")
    found.add_argument("--size", default="", help="WIDTHxHEIGHT in pixels")
    found.add_argument("--steps", type=int)
    found.add_argument("--cfg", type=float, help="guidance")
    found.add_argument("--sampler")
    found.add_argument("--clip", default="", help="a CLIP, folder or hub name: CLIP-T and CLIP-I")
    found.add_argument("--dino", default="", help="a DINO likewise")
    found.add_argument(
        "--references",
        type=Path,
        help="folder with a folder of pictures for each LoRA, called as the LoRA is; for CLIP-I "
        "and DINO",
    )
    found.add_argument(
        "--recognised",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask the LoRAs too how well each recognises its hand",
    )
    found.add_argument("--device", default="auto", help="(%(default)s)")
    found.add_argument("--dtype", help="float32, float16 or bfloat16")
    return found


def request_of(given: argparse.Namespace, published: Request) -> Request:
    """The published settings, with those that were given.

    Raises:
        ComposerError: one cannot be.
    """
    for name in ("sets", "count"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise ComposerError(f"--{name} is {getattr(given, name)}: give at least 1.")
    width, height = read_size(given.size)
    named = {name: getattr(given, name) for name in ("seed", "steps", "sampler")}
    named |= {"cfg_scale": given.cfg, "width": width, "height": height}
    return dataclasses.replace(published, **{n: v for n, v in named.items() if v is not None})


def references_in(folder: Path | None, loras: Sequence[str]) -> dict[str, Path]:
    """The folders of reference pictures, by LoRA; all pictures are looked at.

    Raises:
        ComposerError: one has none, or is of no LoRA.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise ComposerError(f"There is no folder {folder}: give that of the reference pictures.")
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    if unknown := sorted(found.keys() - set(loras)):
        raise ComposerError(
            f"{folder / unknown[0]} is called as no LoRA: call it one of {', '.join(loras)}."
        )
    for path in found.values():
        pictures_in(path)
    if missing := [name for name in loras if name not in found]:
        print(f"no reference pictures, so no CLIP-I and no DINO: {', '.join(missing)}", flush=True)
    return found


def open_studio(given: argparse.Namespace, loras: Path) -> Studio:
    """The model, loaded, with the LoRAs of this folder; encoders are checked before.

    Raises:
        ComposerError: one of them cannot be used.
    """
    for kind, name in ((CLIP, given.clip), (DINO, given.dino)):
        if name:
            check_encoder(kind, name)
    if given.references and not (given.clip or given.dino):
        raise ComposerError("Reference pictures are compared by a CLIP or a DINO: give one too.")
    studio = Studio(
        given.model, [loras], given.out, device=given.device, dtype=given.dtype, vae=given.vae
    )
    if studio.wait().state != "ready":
        raise ComposerError(studio.status.message)
    return studio


def ways_for(studio: Studio, loras: Sequence[str], ways: Sequence[str]) -> dict[str, str]:
    """The ways that are for just these LoRAs, by their keys in a grid, with their titles."""
    found: dict[str, str] = {}
    for way in ways:
        title = title_of_way(way)
        if way == ALONE:
            found |= {f"{ALONE}:{name}": title for name in loras}
        elif way == Gates.kind:
            fitting = [o.recipe.key for o in studio.offers()[0] if o.fits(loras) and not o.instead]
            found |= {key: title for key in fitting if read_recipe(key).kind == Gates.kind}
        elif way == BARE or read_recipe(way).exactly in (0, len(loras)):
            found[way] = title
    return found


def painted_and_scored(
    name: str,
    given: argparse.Namespace,
    studio: Studio,
    compositions: Sequence[Composition],
    request: Request,
    *,
    weight: float,
    references: Mapping[str, Path],
) -> tuple[list[Scored], dict[str, list[str]]]:
    """All pictures that are not there yet are painted into `given.out`, and all are scored.

    weight: of each LoRA, where a way has weights.

    Returns the pictures, and by title why ways refused LoRAs: these pictures are left out.
    """
    folder, kept = GridFolder(given.out), list[tuple[Composition, str, GridCell]]()
    refused: dict[str, list[str]] = {}
    every = sum(len(one.ways) for one in compositions) * given.count
    counted = PictureCount(name, every)
    for one in compositions:
        for key, title in one.ways.items():
            cells = _cells(one, key, request, given.count, weight)
            try:
                for event in studio.grid(cells, folder):
                    if isinstance(event, Filled) and event.scores is None:
                        counted.tick()
            except ComposerError as error:
                print(f"{name}: {one.name} is left out of {title}, for {error}", flush=True)
                refused.setdefault(title, []).append(str(error))
            else:
                kept += [(one, title, cell) for cell in cells]
    if not kept:
        raise ComposerError(next(words[0] for words in refused.values()))
    filled: dict[int, Filled] = {}
    printed = time.monotonic()
    for event in studio.grid(
        [cell for _, _, cell in kept],
        folder,
        scored=given.recognised,
        clip=given.clip,
        dino=given.dino,
        references={
            n: path for n, path in references.items() if any(n in c.loras for c, *_ in kept)
        },
    ):
        if isinstance(event, Filled):
            filled[event.cell] = event
        elif isinstance(event, Progress) and time.monotonic() - printed > EVERY:
            printed = time.monotonic()
            rest = left(event.seconds_left)
            print(f"{name}: {event.step}/{event.steps} pictures scored, {rest}", flush=True)
    found = [
        Scored(composition=one, title=title, seed=cell.asked.request.seed, filled=filled[n])
        for n, (one, title, cell) in enumerate(kept)
    ]
    return found, refused


def _cells(
    one: Composition, key: str, request: Request, count: int, weight: float
) -> tuple[GridCell, ...]:
    rows = tuple(LoraRow(name=name, weight=weight) for name in one.loras)
    asked = ComposeRequest(request=dataclasses.replace(request, prompt=one.prompt), rows=rows)
    seeds = ",".join(str(request.seed_of(number)) for number in range(count))
    axes = [
        Axis(name="set", places=((one.name, lambda same: same),)),
        read_axis(f"seed={seeds}"),
        Axis(name="way", places=((key, to_way(key)),)),
    ]
    return cells_of(asked, axes)


def rows_of(scored: Sequence[Scored]) -> Iterator[Row]:
    """Tables of all sets, of the gains there, and of the sets of each size if there are several.

    Means are over sets of LoRAs, and so are their intervals: pictures of one set depend on each
    other.
    """
    sizes = sorted({len(one.composition.loras) for one in scored})
    tables = {ALL: list(scored)}
    if len(sizes) > 1:
        tables |= {
            f"{size} LoRAs": [one for one in scored if len(one.composition.loras) == size]
            for size in sizes
        }
    for table, some in tables.items():
        values = _values(some)
        for title, by_score in values.items():
            pictures = [one for one in some if one.title == title]
            row: dict[str, Value] = {"table": table, "fusion": title}
            row |= {"sets": len({one.composition.loras for one in pictures}), "n": len(pictures)}
            for score, by_set in by_score.items():
                means = [fmean(found) for found in by_set.values()]
                row |= mean_columns(column_of(score), means)
            yield row
        if table == ALL:
            yield from _gains(values)


Values = dict[str, dict[str, dict[tuple[str, ...], list[float]]]]
"""By title, by score, by set of LoRAs."""


def _values(scored: Sequence[Scored]) -> Values:
    found: Values = {}
    for one in scored:
        by_score = found.setdefault(one.title, {})
        for score, (_, value) in one.filled.overall.items():
            scale = 1 if score.removeprefix(LEAST) in UNITS else 100
            by_set = by_score.setdefault(score, {})
            by_set.setdefault(one.composition.loras, []).append(scale * value)
    return found


def _gains(values: Values) -> Iterator[Row]:
    plain = values.get(Sum.title, {})
    for title, by_score in values.items():
        # LoRAs alone and none are no ways of fusing
        if title in (Sum.title, title_of_way(BARE), title_of_way(ALONE)):
            continue
        row: dict[str, Value] = {"table": GAINS, "fusion": title}
        for score, by_set in by_score.items():
            both = [one for one in by_set if one in plain.get(score, {})]
            if both and score.removeprefix(LEAST) not in ("unlike bare", "seconds"):
                gains = [fmean(by_set[one]) - fmean(plain[score][one]) for one in both]
                row |= mean_columns(column_of(score), gains)
        if len(row) > len(("table", "fusion")):
            yield row


def mean_columns(column: str, by_set: Sequence[float]) -> dict[str, float]:
    """The mean over sets, with its interval where there are enough for one."""
    if len(by_set) < FEWEST:
        return {column: round(fmean(by_set), 4)}
    return interval_columns(column, bootstrap_mean(by_set))


def column_of(score: str) -> str:
    """With its unit."""
    return f"{score}{UNITS.get(score.removeprefix(LEAST), ' (×100)')}"


def publish_protocol(
    name: str,
    given: argparse.Namespace,
    arguments: Sequence[str] | None,
    scored: Sequence[Scored],
    refused: Mapping[str, Sequence[str]],
    *,
    title: str,
    rows: Sequence[Row],
    notes: Sequence[str],
    request: Request,
    model: str,
    **settings: Value,
) -> None:
    """Write the results file, and the same as a page for people beside it.

    settings: further ones that decide the figures.
    """
    named = {score.removeprefix(LEAST) for one in scored for score in one.filled.overall}
    words = [
        f"*{score[0].upper()}{score[1:]}*: {SCORES[score]}." for score in SCORES if score in named
    ]
    words.append(
        "Of the LoRAs of a picture the mean is given, and the least of one. Means and their "
        f"intervals, of {FEWEST} sets or more, are over sets of LoRAs. A gain is of the same sets "
        "and seeds."
    )
    refusals = [
        f"{way} refuses {len(reasons)} of the sets: {reasons[0]}"
        for way, reasons in refused.items()
    ]
    path = publish(
        name,
        rows,
        arguments,
        title=title,
        notes=[*notes, *words, *refusals],
        settings={
            "model": model,
            "seeds": given.count,
            "first seed": request.seed,
            "size": f"{request.width}x{request.height}",
            "steps": request.steps,
            "CFG": request.cfg_scale,
            "sampler": request.sampler,
            **settings,
        },
        folder=given.results or given.out,
    )
    path.with_suffix(".md").write_text(
        results_section(read_results(path), level=1) + "\n", encoding="utf-8"
    )
