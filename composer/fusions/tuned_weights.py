"""Weights of a weighted sum that a search found, in a small JSON file that says how."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from composer.errors import ComposerError
from composer.files import write_atomically
from composer.outside import parse_object

FORMAT = "composer.tuned_weights"
VERSION = 1
MOST_BYTES = 2**16
MOST_LORAS = 16
MOST_WEIGHT = 10.0
_HASH = re.compile(r"[0-9a-f]{64}")
_LETTERS = 200  # of a name


@dataclass(frozen=True, kw_only=True)
class TunedLora:
    """One LoRA, known by the hash of its tensors, and its weight."""

    name: str
    tensor_hash: str
    weight: float

    def __post_init__(self) -> None:
        """Files come from strangers."""
        _check_text("the name of a LoRA", self.name)
        _check_text("a tensor_hash", self.tensor_hash)
        if not _HASH.fullmatch(self.tensor_hash):
            raise ValueError("a tensor_hash is no SHA-256 in hexadecimal digits")
        _check_number("a weight", self.weight, -MOST_WEIGHT, MOST_WEIGHT)


@dataclass(frozen=True, kw_only=True)
class TunedWeights:
    """The best weights that a search found for a weighted sum of these LoRAs, and how.

    model, model_hash: the Stable Diffusion whose pictures were judged.
    judge: who judged them, for people: "CLIP openai/clip-vit-base-patch16".
    pictures: that were judged of each point of the grid.
    points: how many combinations of weights were tried, of these `grid` numbers.
    score, score_of_ones: the mean score with these weights, and with weights of 1; higher is
        better, in the judge's own unit. None: not known.
    """

    loras: tuple[TunedLora, ...]
    model: str
    model_hash: str
    judge: str
    pictures: int
    points: int
    grid: tuple[float, ...]
    score: float | None = None
    score_of_ones: float | None = None

    def __post_init__(self) -> None:
        """Files come from strangers."""
        if not 1 <= len(self.loras) <= MOST_LORAS:
            raise ValueError(f"it is for {len(self.loras)} LoRAs, not 1 to {MOST_LORAS}")
        if len({lora.tensor_hash for lora in self.loras}) < len(self.loras):
            raise ValueError("it names one LoRA twice")
        for name in ("model", "model_hash", "judge"):
            _check_text(name, getattr(self, name))
        for name in ("pictures", "points"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**9:
                raise ValueError(f"{name} is no number of things")
        for number in self.grid:
            _check_number("a number of the grid", number, -MOST_WEIGHT, MOST_WEIGHT)
        for number in (self.score, self.score_of_ones):
            if number is not None:
                _check_number("a score", number, -1e9, 1e9)

    @property
    def found_by(self) -> str:
        """How the weights were found, in a line."""
        return f"best of {self.points} by {self.judge}"

    def weights(self) -> dict[str, float]:
        """By the name of each LoRA."""
        return {lora.name: lora.weight for lora in self.loras}

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            ComposerError: it cannot be written.
        """
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        text = json.dumps(values, ensure_ascii=False, indent=2)
        write_atomically(path, f"{text}\n".encode())


def file_name_for(names: Iterable[str]) -> str:
    """What the file for LoRAs of these names is called, in a folder of such files."""
    plain = sorted(name.rpartition("/")[2] for name in names)
    return re.sub(r"[^\w+. -]", "_", "+".join(plain))[:120] + ".json"


def read_tuned_weights(path: Path) -> TunedWeights:
    """Read such a file; nothing in it is believed before it is checked.

    Raises:
        ComposerError: it is missing, too large, of a later version, or no such file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ComposerError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(data) > MOST_BYTES:
        raise _refused(path, f"it is larger than {MOST_BYTES // 1024} KiB")
    try:
        values = parse_object(data)
    except ValueError as error:
        raise _refused(path, f"it is no JSON of Composer: {error}") from None
    if values.pop("format", None) != FORMAT:
        raise _refused(path, "it is of no format of tuned weights")
    if (version := values.pop("version", None)) != VERSION:
        raise ComposerError(
            f"{path}: is of version {str(version)[:20]}, and this Composer reads version "
            f"{VERSION}. Update Composer, or tune the weights again."
        )
    try:
        loras = _list(values.pop("loras"))
        grid = _list(values.pop("grid"))
        return TunedWeights(
            loras=tuple(TunedLora(**cast(Mapping[str, Any], lora)) for lora in loras),
            grid=tuple(cast(Any, grid)),
            **values,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, str(error)[:200]) from None


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("a list is missing")
    return cast(list[object], value)


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= _LETTERS or not value.isprintable():
        raise ValueError(f"{what} is no text of 1 to {_LETTERS} letters")


def _check_number(what: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{what} is no number from {least:g} to {most:g}")


def _refused(path: Path, reason: str) -> ComposerError:
    return ComposerError(
        f"{path}: holds no tuned weights that can be used: {reason}. Remove it, or tune the "
        "weights again."
    )
