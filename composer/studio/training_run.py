"""One run of a gate training, from the lent model to the published file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from composer.errors import ComposerError
from composer.files import write_atomically
from composer.studio.training_files import TrainingFiles
from composer.studio.training_request import CHECKPOINT_EVERY
from composer.studio.training_state import Point, Training
from composer.studio.turns import Turns

if TYPE_CHECKING:
    from composer.studio.lending import Lent
    from composer.training.gates.settings import GateProgress

log = logging.getLogger("composer")


class Update(Protocol):
    """Changes fields of the training that others see."""

    def __call__(self, **changes: object) -> None: ...


@dataclass(kw_only=True)
class Run:
    """Trains, reports its progress, keeps it on the disk; a mistake becomes the training's message.

    get, update: the training as others see it.
    keep: writes it to the disk, unless it was forgotten meanwhile.
    """

    files: TrainingFiles
    gates: Path
    lend: Callable[[Sequence[str]], Lent]
    turns: Turns
    get: Callable[[], Training]
    update: Update
    keep: Callable[[], None]

    def go(self, cancelled: Callable[[], bool], *, resume: bool) -> None:
        """From the first step, or from where it was stopped, to the end or until cancelled."""
        try:
            self._train(cancelled, resume)
        except Exception as error:
            self._fail(error)
        else:
            if self.get().state != "finished":
                self.update(state="stopped", seconds_left=None)
        self._keep()

    def _train(self, cancelled: Callable[[], bool], resume: bool) -> None:
        from composer.training.gates.train import train_gates

        request = self.get().request
        if cancelled():
            return
        self.update(state="running", stage="prepare", step=0, total=0)
        output = self.files.output(request.name)
        config = request.config(output, resume=resume)
        lent = self.lend(request.loras)
        with self.turns.step(cancelled):
            reports = train_gates(lent.model, lent.experts, config, cancelled=cancelled)
        while True:
            with self.turns.step(cancelled):
                report = next(reports, None)
            if report is None:
                return
            self._take(report)

    def _take(self, report: GateProgress) -> None:
        training = self.get()
        if report.stage == "saved":
            path = self._publish()
            self.update(state="finished", path=path, step=report.step, seconds_left=None)
            return
        history, previews = training.history, training.previews
        if report.stage == "train":
            point = Point(step=report.step, losses=dict(report.losses), entropy=report.entropy)
            history = training.with_point(point)
        if report.preview is not None:
            shown = self.files.keep_preview(training.name, report.step, report.preview)
            previews = (*(p for p in previews if p.step < report.step), shown)
        self.update(
            stage=report.stage,
            step=report.step,
            total=report.total,
            history=history,
            previews=previews,
            seconds_left=report.seconds_left,
            skipped=report.skipped,
        )
        if report.stage == "train" and report.step % CHECKPOINT_EVERY == 0:
            self._keep()

    def _publish(self) -> Path:
        """Move the finished file to where gates are looked for."""
        made = self.files.output(self.get().name)
        path = self.gates / made.name
        self.gates.mkdir(parents=True, exist_ok=True)
        write_atomically(path, made.read_bytes())
        made.unlink()
        return path

    def _fail(self, error: Exception) -> None:
        from composer.diffusion.memory import is_out_of_memory

        message = str(error)
        if is_out_of_memory(error):
            message = (
                "There is not enough memory to train these gates: lower the rows at once, or "
                "switch less memory on, both under Advanced."
            )
        elif not isinstance(error, ComposerError):
            log.exception("a training failed")
            message = f"{type(error).__name__}: {error}. The log has the whole story."
        training = self.get()
        if training.history and self.files.output(training.name).is_file():
            try:
                path = self._publish()
                message += f" The last good gates are kept as {path.stem!r}."
                self.update(path=path)
            except (ComposerError, OSError):  # where they are is as good a place
                message += f" The gates are kept in {self.files.output(training.name)}."
        self.update(state="failed", message=message, seconds_left=None)

    def _keep(self) -> None:
        try:
            self.keep()
        except ComposerError as error:
            self.update(message=str(error))
