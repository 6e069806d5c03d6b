"""Results files: the figures of one benchmark with all it takes to judge and repeat them."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from composer import __version__
from composer.errors import ComposerError
from toybox.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "results"
LIBRARIES = ("torch", "diffusers", "transformers", "peft")
Value = str | int | float | bool | None
Row = Mapping[str, Value]
TAUGHT = "taught"
"""The family of LoRAs that is meant where none is named."""
OF_THE_TOYBOX = ("toybox.", "compos.", "gates.", "mixlora.pictures", "language.expand")
"""What the names of results begin with that depend on the toybox's weights."""
_NAME = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Results:
    """One results file.

    title, notes: what a reader sees above and below the tables; notes hold one paragraph each.
    rows: flat objects, one for each line of a table. Rows with different columns are shown as
        separate tables; the column "table" names the one a row belongs to, and "family" the
        family of LoRAs, the same in all rows of a file.
    model: the hash of the toybox's U-Net that shipped then.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    command: str
    commit: str
    date: str
    machine: Mapping[str, Value]
    versions: Mapping[str, str]
    settings: Mapping[str, Value]
    rows: tuple[Row, ...]
    model: str = ""

    @property
    def earlier_model(self) -> bool:
        """Whether it measured a toybox that no longer ships."""
        return self.name.startswith(OF_THE_TOYBOX) and self.model != toybox_hash()

    @property
    def family(self) -> str:
        """Of the LoRAs that were fused."""
        return _family_of(self.rows)

    @property
    def stem(self) -> str:
        """What its file and its page are called."""
        return file_stem(self.name, self.family)


def write_results(
    name: str,
    rows: Sequence[Row],
    *,
    command: str,
    title: str = "",
    notes: Sequence[str] = (),
    settings: Mapping[str, Value] | None = None,
    folder: Path = FOLDER,
) -> Path:
    """Write the results of `benchmarks.NAME` into `folder`, and return their file.

    `command` is what to type to measure again; the commit, machine, versions and date are added.
    """
    if not _NAME.fullmatch(name):
        raise ComposerError(
            f"{name!r} cannot name results: give ROOM.MODULE of benchmarks/, as in gates.cost."
        )
    if not rows:
        raise ComposerError(f"Results {name!r} have no rows: measure something first.")
    for row in rows:
        for key, value in row.items():
            # null would pass JSON, NaN would not be read by others
            if isinstance(value, float) and value != value:
                raise ComposerError(f"Results {name!r}: {key!r} is not a number in {dict(row)}.")
    results = {
        "name": name,
        "title": title or name.rpartition(".")[2].replace("_", " ").capitalize(),
        "notes": list(notes),
        "command": command,
        "commit": _git_commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": describe_machine(),
        "versions": _versions(),
        "settings": dict(settings or {}),
        "model": toybox_hash(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_stem(name, _family_of(rows))}.json"
    path.write_text(_layout(results, rows), encoding="utf-8")
    return path


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote; ComposerError when the file is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Results(
            **{key: found[key] for key in found if key not in ("rows", "notes")},
            notes=tuple(found["notes"]),
            rows=tuple(found["rows"]),
        )
    except (json.JSONDecodeError, LookupError, TypeError) as error:
        raise ComposerError(
            f"{path} is no results file ({error}): run its benchmark again."
        ) from error


@cache
def toybox_hash() -> str:
    """The first digits of the SHA-256 of the shipped U-Net's file."""
    file = ROOT / "assets" / "toybox" / "unet" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def in_table(rows: Sequence[Row], table: str) -> list[Row]:
    """Those that belong to the table of this name."""
    return [row for row in rows if row.get("table") == table]


def number(row: Row, column: str) -> float:
    """A column that holds a number."""
    value = row[column]
    assert isinstance(value, int | float), (column, value)
    return float(value)


def file_stem(name: str, family: str = TAUGHT) -> str:
    """What the results, the page and the sheet of `benchmarks.NAME` are called."""
    stem = name.replace(".", "_")
    return stem if family == TAUGHT else f"{stem}_{family}"


def _family_of(rows: Sequence[Row]) -> str:
    return str(rows[0].get("family", TAUGHT))


def _versions() -> dict[str, str]:
    """Python, Composer and the libraries that decide the figures."""
    found = {"python": platform.python_version(), "composer": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_commit() -> str:
    """The commit checked out, with "+" where tracked code was changed since.

    Results and documents do not count as changes: a benchmark writes them itself.
    """
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    others = ("--", ".", ":!benchmarks/results", ":!docs")
    return f"{commit}+" if _git("status", "--porcelain", "-uno", *others) else commit


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # there is no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _layout(results: Mapping[str, object], rows: Sequence[Row]) -> str:
    """JSON with one row of the table on one line, so that a change is a line in a diff."""
    head = json.dumps(results, indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(dict(row), ensure_ascii=False)}" for row in rows)
    return f'{head},\n "rows": [\n{lines}\n ]\n}}\n'
