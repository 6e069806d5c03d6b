"""Trainings on the disk: a folder for each, from which it goes on after a restart of the app."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from PIL import Image

from composer.diffusion.display import enlarge
from composer.errors import ComposerError
from composer.files import write_atomically
from composer.studio.training_request import TrainingRequest
from composer.studio.training_state import Point, Preview, Stage, Training

VERSION = 1
RECORD = "training.json"
SIDE = 384  # of previews, which are for the eye alone

_STAGES: dict[str, Stage] = {"teach": "alone", "start": "alone"}
"""Stages of trainings that were begun when they were called otherwise."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)

log = logging.getLogger("composer")


class TrainingFiles:
    """`<folder>/<name>/`: what was asked and how far it came (`training.json`), the state to resume
    from (`<name>.resume`), previews, and the gate file until it is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, name: str) -> Path:
        """The folder of one training."""
        return self.folder / name

    def output(self, name: str) -> Path:
        """Where it writes its gates; once complete they are moved to where gates are looked for."""
        return self.of(name) / f"{name}.safetensors"

    def write(self, training: Training) -> None:
        """Keep how far it came.

        Raises:
            ComposerError: the folder cannot be written to.
        """
        values: dict[str, Any] = {
            "version": VERSION,
            "request": training.request.to_json(),
            "history": [asdict(point) for point in training.history],
            "previews": [[shown.step, shown.path.name] for shown in training.previews],
            "path": None if training.path is None else str(training.path),
        }
        values |= {
            name: getattr(training, name)
            for name in ("state", "stage", "step", "total", "skipped", "message", "created")
        }
        folder = self.of(training.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ComposerError(
                f"The training cannot be kept in {folder}: {error.strerror}. Start Composer with "
                "another folder for pictures."
            ) from error
        text = json.dumps(values, ensure_ascii=False)
        write_atomically(folder / RECORD, text.encode())

    def read(self) -> Iterator[Training]:
        """The trainings on the disk. What was running when the app ended is stopped now."""
        for record in sorted(self.folder.glob(f"*/{RECORD}")):
            try:
                yield _read(record)
            except _UNREADABLE as error:
                log.warning("%s cannot be read (%s): this training is left out", record, error)

    def keep_preview(self, name: str, step: int, image: Image.Image) -> Preview:
        """Write a picture that was made on the way."""
        path = self.of(name) / f"step-{step:06}.webp"
        if max(image.size) < SIDE:
            image = enlarge(image, SIDE)
        encoded = io.BytesIO()
        image.save(encoded, "WEBP", quality=90)
        write_atomically(path, encoded.getvalue())
        return Preview(step=step, path=path)

    def forget(self, name: str) -> None:
        """Delete all of a training but its finished gate file, which lies elsewhere.

        Raises:
            ComposerError: the folder cannot be deleted.
        """
        try:
            shutil.rmtree(self.of(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise ComposerError(
                f"The folder {self.of(name)} cannot be deleted ({error.strerror}): delete it by "
                "hand."
            ) from error


def _read(record: Path) -> Training:
    # a curve may hold NaN, which `parse_json` refuses
    values = json.loads(record.read_text(encoding="utf-8"))
    if values["version"] != VERSION:
        raise ComposerError(f"it is of version {values['version']}, and this one reads {VERSION}")
    request = TrainingRequest.from_json(values["request"])
    if request.name != record.parent.name:
        raise ComposerError(f"it belongs to a training called {request.name!r}")
    previews = [
        Preview(step=step, path=record.parent / Path(n).name) for step, n in values["previews"]
    ]
    active = values["state"] in ("waiting", "running", "stopping")
    return Training(
        request=request,
        state="stopped" if active else values["state"],
        history=tuple(Point(**point) for point in values["history"]),
        previews=tuple(shown for shown in previews if shown.path.is_file()),
        path=None if values["path"] is None else Path(values["path"]),
        stage=_STAGES.get(str(values["stage"]), cast("Stage", values["stage"])),
        **{name: values[name] for name in ("step", "total", "skipped", "message", "created")},
    )
