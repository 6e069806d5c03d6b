"""Finished pictures on the disk. Each PNG says itself how it was made; there is no other record."""

from __future__ import annotations

import contextlib
import datetime
import io
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, PngImagePlugin

from composer.diffusion.display import enlarge
from composer.diffusion.png import open_png, read_png, write_png
from composer.diffusion.record import PictureRecord
from composer.errors import ComposerError
from composer.files import clean, held, temporary, write_atomically
from composer.fusions import LoraRow, Recipe, recorded_recipe
from composer.studio.requests import row_of

if TYPE_CHECKING:
    from composer.fusions.gate_record import GateRecord

MAX_MAP_BYTES = 64 * 2**20
_NUMBER = re.compile(r"(\d{4,18})-\d+\.(png|gates\.npz)")


@dataclass(frozen=True, kw_only=True)
class SavedPicture:
    """A picture on the disk; `id` is its path in the folder of pictures."""

    id: str
    path: Path

    @cached_property
    def record(self) -> PictureRecord:
        """How it was made."""
        return read_png(self.path)

    @property
    def rows(self) -> tuple[LoraRow, ...]:
        """The LoRAs by the names they had then."""
        return tuple(map(row_of, self.record.loras))

    @property
    def recipe(self) -> Recipe | None:
        """How its LoRAs were fused, by the file's name then; None if it is not known here."""
        return recorded_recipe(self.record.fusion)

    @property
    def gated(self) -> bool:
        """Whether learned gates fused its LoRAs."""
        return self.recipe is not None and self.recipe.gated

    @property
    def gates_path(self) -> Path:
        """Where it stands beside the picture what its gates gave, if that was kept."""
        return self.path.with_suffix(".gates.npz")

    @property
    def scores_path(self) -> Path:
        """Where the scores that were found of it stand beside the picture."""
        return self.path.with_suffix(".scores.json")

    def gate_record(self) -> GateRecord | None:
        """What the gates gave while it was made; None if that was not kept.

        Raises:
            ComposerError: the file is damaged.
        """
        from composer.fusions.gate_record import GateRecord

        try:
            if self.gates_path.stat().st_size > MAX_MAP_BYTES:
                raise ComposerError(f"{self.gates_path} is too large to be a gate map.")
            return GateRecord.from_bytes(self.gates_path.read_bytes())
        except OSError:
            return None

    def image(self) -> Image.Image:
        """The picture itself.

        Raises:
            ComposerError: the file is damaged, or something else.
        """
        with open_png(self.path) as image:
            return image.convert("RGB")

    def shown(self, side: int) -> bytes:
        """A PNG for the eye: enlarged to `side` if it is smaller, with the same record inside.

        Raises:
            ComposerError: the file is damaged, or something else.
        """
        with open_png(self.path) as image:
            if max(image.size) >= side:
                return self.path.read_bytes()
            texts = PngImagePlugin.PngInfo()
            for key, text in image.info.items():
                if isinstance(text, str):
                    texts.add_text(str(key), text)
            buffer = io.BytesIO()
            enlarge(image.convert("RGB"), side).save(buffer, "PNG", pnginfo=texts)
        return buffer.getvalue()


class History:
    """The folder of pictures: `<date>/<number>-<seed>.png`, numbers counted up each day."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self, image: Image.Image, record: PictureRecord, gates: GateRecord | None = None
    ) -> SavedPicture:
        """Keep a picture, and beside it what its gates gave.

        Raises:
            ComposerError: the folder cannot be written to.
        """
        day = self.folder / datetime.date.today().isoformat()
        try:
            day.mkdir(parents=True, exist_ok=True)
            with _next_number(day) as number:
                path = day / f"{number:04}-{record.request.seed}.png"
                saved = self._saved(path)
                if gates is not None:
                    write_atomically(saved.gates_path, gates.to_bytes())
                write_png(path, image, record)
        except OSError as error:
            raise ComposerError(
                f"The picture cannot be kept in {day}: {error.strerror}. Make room there, or start "
                "with another folder for pictures."
            ) from error
        return saved

    def clean(self) -> None:
        """Delete what was being written when a process was killed."""
        for day in self._days():
            clean(day)

    def recent(self, most: int) -> tuple[SavedPicture, ...]:
        """The newest pictures, newest first."""
        return tuple(saved for saved, _ in zip(self._newest_first(), range(most), strict=False))

    def find(self, identity: str) -> SavedPicture:
        """The picture of that id. The id is compared with those on the disk, never made a path.

        Raises:
            ComposerError: there is none.
        """
        for saved in self._newest_first():
            if saved.id == identity:
                return saved
        raise ComposerError(
            f"The picture {identity!r} is gone from {self.folder}. Put it back, or choose another."
        )

    def read(self, path: Path) -> SavedPicture:
        """A picture from anywhere, checked: it says how it was made.

        Raises:
            ComposerError: it is no picture, or does not say.
        """
        saved = SavedPicture(id="", path=path)
        _ = saved.record
        return saved

    def _newest_first(self) -> Iterator[SavedPicture]:
        for day in self._days():
            paths = sorted(_numbered(day), reverse=True)
            yield from (self._saved(path) for _, path in paths if path.suffix == ".png")

    def _days(self) -> list[Path]:
        """The newest first."""
        if not self.folder.is_dir():
            return []
        return [day for day in sorted(self.folder.iterdir(), reverse=True) if day.is_dir()]

    def _saved(self, path: Path) -> SavedPicture:
        return SavedPicture(id=path.relative_to(self.folder).as_posix(), path=path)


def _numbered(day: Path) -> Iterator[tuple[int, Path]]:
    for path in day.iterdir():
        if found := _NUMBER.fullmatch(path.name):
            yield int(found[1]), path


@contextlib.contextmanager
def _next_number(day: Path) -> Generator[int]:
    """The number of the next picture, which no other process takes meanwhile."""
    number = 0
    while True:
        number = max((number, *(taken for taken, _ in _numbered(day)))) + 1
        with contextlib.ExitStack() as holding:
            try:
                holding.enter_context(held(temporary(day / f"{number:04}", "00000000")))
            except FileExistsError:
                continue
            # whoever held it before is done, and its picture is there
            if all(taken != number for taken, _ in _numbered(day)):
                yield number
                return
