"""What every benchmark of the toybox can be told on the command line, and where it writes."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.shared.markdown import markdown_tables
from benchmarks.shared.results import FOLDER, ROOT, Row, file_stem, write_results
from composer.evaluation.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options all benchmarks share; `name` is the benchmark's own."""

    name: str
    model: Path
    loras: Path
    count: int
    sampling: Sampling
    truth: bool
    cache: Path
    results: Path
    images: Path
    command: str

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
        print(markdown_tables(rows), flush=True)
        if self.truth:
            print("Renderings were judged, not pictures of the model: no results written.")
            return
        path = write_results(
            self.name,
            rows,
            command=self.command,
            title=title,
            notes=notes,
            settings={**self.settings, **settings},
            folder=self.results,
        )
        print(f"{path.name} is written. `python -m benchmarks.tables` brings it into the docs.")

    def save_sheet(self, name: str, sheet: Image.Image) -> str:
        """Save a contact sheet; returns the Markdown that shows it in the docs."""
        self.images.mkdir(parents=True, exist_ok=True)
        stem = file_stem(name)
        sheet.save(self.images / f"{stem}.webp", quality=90, method=6)
        return f"![{stem.replace('_', ' ').capitalize()}](images/{stem}.webp)"


def parser(name: str, description: str, *, count: int, what: str) -> argparse.ArgumentParser:
    """A parser with the options all benchmarks share; `count` counts `what`."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    found.add_argument("--count", type=int, default=count, help=f"{what} (%(default)s)")
    found.add_argument("--model", type=Path, default=ROOT / "assets/toybox", help="model folder")
    found.add_argument("--loras", type=Path, default=ROOT / "loras", help="folder of the LoRAs")
    found.add_argument("--steps", type=int, default=12, help="(%(default)s)")
    found.add_argument("--cfg", type=float, default=3.0, help="guidance (%(default)s)")
    found.add_argument("--sampler", default="DDIM", help="(%(default)s)")
    found.add_argument("--batch", type=int, default=32, help="pictures at once (%(default)s)")
    found.add_argument(
        "--truth",
        action="store_true",
        help="judge renderings instead of the model's pictures: the best any model can reach",
    )
    found.add_argument("--results", type=Path, default=FOLDER, help="folder of the results files")
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
        loras=given.loras,
        count=given.count,
        sampling=Sampling(
            steps=given.steps, cfg_scale=given.cfg, sampler=given.sampler, batch_size=given.batch
        ),
        truth=given.truth,
        cache=given.cache / "pictures",
        results=given.results,
        images=sheets,
        command=_command(name, sys.argv[1:] if arguments is None else arguments),
    )


def _command(name: str, arguments: Sequence[str]) -> str:
    """What was typed, with folders outside the project by their names alone."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return shlex.join(["python", "-m", f"benchmarks.{name}", *words])
