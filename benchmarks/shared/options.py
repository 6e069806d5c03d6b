"""The options that benchmarks share, and how they publish what they measured."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.shared.markdown import markdown_tables
from benchmarks.shared.results import FOLDER, ROOT, TAUGHT, Row, Value, file_stem, write_results
from composer.evaluation.sampling import Sampling

FAMILIES = {TAUGHT: "", "wild": "wild"}
"""Families of LoRAs of the same elements, and their folders within that of the LoRAs."""
FAMILY_HELP = (
    "taught well, or from few pictures with every trainer's own settings, in the folder's "
    "folder wild (%(default)s)"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of all benchmarks of pictures.

    name: the benchmark's own.
    family, loras: which LoRAs of the elements are fused, and the folder they lie in.
    """

    name: str
    model: Path
    family: str
    loras: Path
    count: int
    sampling: Sampling
    truth: bool
    cache: Path
    results: Path
    images: Path
    arguments: tuple[str, ...]

    @property
    def settings(self) -> dict[str, str | int | float | bool]:
        """For the results file: what decides the figures."""
        return {
            "steps": self.sampling.steps,
            "CFG": self.sampling.cfg_scale,
            "sampler": self.sampling.sampler,
            "count": self.count,
        }

    def publish(
        self, title: str, rows: Sequence[Row], notes: Sequence[str], **settings: str | int | float
    ) -> None:
        """Print the table, and write the results unless renderings were judged."""
        if self.truth:
            print(markdown_tables(rows), flush=True)
            print("Renderings were judged, not pictures of the model: no results written.")
            return
        publish(
            self.name,
            [{**row, "family": self.family} for row in rows],
            self.arguments,
            title=title if self.family == TAUGHT else f"{title}: {self.family} LoRAs",
            notes=notes,
            settings={**self.settings, **settings},
            folder=self.results,
        )

    def save_sheet(self, name: str, sheet: Image.Image) -> str:
        """Save a contact sheet; returns the Markdown that shows it in the docs."""
        return save_sheet(name, sheet, family=self.family, folder=self.images)


def save_sheet(name: str, sheet: Image.Image, *, family: str, folder: Path) -> str:
    """Save a sheet of LoRAs of a family; returns the Markdown that shows it in the docs."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = file_stem(name, family)
    sheet.save(folder / f"{stem}.webp", quality=90, method=6)
    return f"![{stem.replace('_', ' ').capitalize()}](images/{stem}.webp)"


def publish(
    name: str,
    rows: Sequence[Row],
    arguments: Sequence[str] | None,
    *,
    title: str,
    notes: Sequence[str] = (),
    settings: Mapping[str, Value] | None = None,
    folder: Path = FOLDER,
) -> Path:
    """Print the tables, and write the results with the command of these arguments (None: those of
    this process), folders outside the project by their names alone. Returns their file."""
    print(markdown_tables(rows), flush=True)
    words = [Path(word).name if Path(word).is_absolute() else word for word in typed(arguments)]
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *words])
    path = write_results(
        name, rows, command=command, title=title, notes=notes, settings=settings, folder=folder
    )
    docs = " `python -m benchmarks.tables` brings it into the docs." if folder == FOLDER else ""
    print(f"{path.name} is written.{docs}")
    return path


def typed(arguments: Sequence[str] | None) -> Sequence[str]:
    """The arguments, or those of this process."""
    return sys.argv[1:] if arguments is None else arguments


def plain_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the one option of every benchmark, `--results`."""
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--results", type=Path, default=FOLDER, help="folder of the results files")
    return found


def parser(name: str, description: str, *, count: int, what: str) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks of pictures; `count` counts `what`."""
    found = plain_parser(name, description)
    found.add_argument("--count", type=int, default=count, help=f"{what} (%(default)s)")
    found.add_argument("--model", type=Path, default=ROOT / "assets/toybox", help="model folder")
    found.add_argument("--loras", type=Path, default=ROOT / "loras", help="folder of the LoRAs")
    found.add_argument("--family", choices=FAMILIES, default=TAUGHT, help=FAMILY_HELP)
    found.add_argument("--steps", type=int, default=12, help="(%(default)s)")
    found.add_argument("--cfg", type=float, default=3.0, help="guidance (%(default)s)")
    found.add_argument("--sampler", default="DDIM", help="(%(default)s)")
    found.add_argument("--batch", type=int, default=32, help="pictures at once (%(default)s)")
    found.add_argument(
        "--truth",
        action="store_true",
        help="judge renderings instead of the model's pictures: the best any model can reach",
    )
    found.add_argument("--images", type=Path, default=ROOT / "docs/images", help="for the sheets")
    found.add_argument(
        "--cache",
        type=Path,
        default=ROOT / "runs/benchmarks",
        help="pictures made so far; a benchmark that was stopped goes on from there",
    )
    return found


def options(name: str, given: argparse.Namespace, arguments: Sequence[str] | None) -> Options:
    """The shared options as they were given."""
    sheets = given.cache / "ceiling" if given.truth else given.images
    return Options(
        name=name,
        model=given.model,
        family=given.family,
        loras=given.loras / FAMILIES[given.family],
        count=given.count,
        sampling=Sampling(
            steps=given.steps, cfg_scale=given.cfg, sampler=given.sampler, batch_size=given.batch
        ),
        truth=given.truth,
        cache=given.cache / "pictures",
        results=given.results,
        images=sheets,
        arguments=tuple(typed(arguments)),
    )
