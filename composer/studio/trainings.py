"""Gate trainings as jobs of the server: they go on whoever watches, and after a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composer.errors import ComposerError
from composer.files import clean
from composer.studio.jobs import JobQueue
from composer.studio.training_files import TrainingFiles
from composer.studio.training_request import MOST_LETTERS, TrainingRequest
from composer.studio.training_run import Run
from composer.studio.training_state import Training
from composer.studio.turns import Turns

# Kept off until a training begins: they bring PyTorch in.
if TYPE_CHECKING:
    from composer.experts.card import Card
    from composer.studio.lending import Lent
    from composer.training.gates.prompts import Prompts


class Trainings:
    """One training at a time, first come, first served. Safe to use from several threads.

    folder: where they are kept.
    gates: where finished gate files go; None where there is no LoRA folder.
    card: the card of a LoRA by its name.
    lend: a model to train on and the experts of these names; blocks until the model is loaded.
    turns: who works now, a picture or a training.
    own_clip: refuses a loaded model that has no CLIP of its own.
    """

    def __init__(
        self,
        folder: Path,
        gates: Path | None,
        *,
        card: Callable[[str], Card],
        lend: Callable[[Sequence[str]], Lent],
        turns: Turns,
        own_clip: Callable[[], object],
    ) -> None:
        self.gates = gates
        self._files = TrainingFiles(folder)
        self._card, self._lend, self._turns = card, lend, turns
        self._own_clip = own_clip
        self._jobs: JobQueue[None] = JobQueue()
        self._changed = threading.Condition()
        self._known: dict[str, Training] | None = None

    # --- what there is

    def all(self) -> tuple[Training, ...]:
        """Every training, the newest first; those of earlier runs of the app included."""
        with self._changed:
            found = [self._as_it_stands(training) for training in self._read().values()]
        return tuple(sorted(found, key=lambda training: -training.created))

    def get(self, name: str) -> Training:
        """The training of that name.

        Raises:
            ComposerError: there is none.
        """
        with self._changed:
            if name not in self._read():
                raise ComposerError(f"There is no training called {name!r} any more.")
            return self._as_it_stands(self._read()[name])

    def follow(self, name: str, *, every: float = 0.2) -> Iterator[Training]:
        """The training each time that it changed, until it neither runs nor waits; the last
        one says how it ended. Closing the iterator changes nothing.

        Raises:
            ComposerError: there is no such training.
        """
        last: Training | None = None
        while last is None or last.active:
            now = self.get(name)
            if now != last:
                yield now
            last = now
            with self._changed:
                self._changed.wait(every)

    def suggest(self, loras: Sequence[str]) -> str:
        """A name for the result that is not taken yet."""
        plain = ["".join(c if c.isalnum() or c in "-+" else "_" for c in name) for name in loras]
        base = "_".join(plain).strip("_-+")[: MOST_LETTERS - 4] or "gates"
        number, name = 1, base
        while self._taken(name):
            number += 1
            name = f"{base}_{number}"
        return name

    def draft(self, triggers: Mapping[str, str]) -> Prompts:
        """Prompts for LoRAs by their trigger words; a LoRA's role comes from its card.

        Raises:
            ComposerError: there is no such LoRA, or one has no trigger words.
        """
        from composer.training.gates.prompts import Called, draft_prompts

        return draft_prompts(
            [
                Called(name=name, trigger=words, role=self._card(name).info.role)
                for name, words in triggers.items()
            ]
        )

    def clean(self) -> None:
        """Delete what was being written when a process was killed."""
        for folder in self._files.folder.glob("*/"):
            clean(folder)

    # --- what is done

    def start(self, request: TrainingRequest) -> Training:
        """Put a training at the end of the line.

        Raises:
            ComposerError: a LoRA is missing, a setting is wrong, the name is taken or nothing could
                be written; nothing was begun then.
        """
        self._check(request)
        if self._taken(request.name):
            raise ComposerError(
                f"There are gates or a training called {request.name!r} already: give another "
                f"name, such as {self.suggest([request.name])!r}, or forget that training."
            )
        return self._submit(Training(request=request, created=time.time()), resume=False)

    def resume(self, name: str) -> Training:
        """Go on with a stopped training where it was.

        Raises:
            ComposerError: it cannot go on: it runs or is finished, or a LoRA is missing.
        """
        training = self.get(name)
        if training.active or training.state == "finished":
            raise ComposerError(
                f"The training {name!r} is {training.state}: nothing to go on with."
            )
        self._check(training.request)
        changed = replace(training, state="waiting", message="", seconds_left=None)
        return self._submit(changed, resume=True)

    def stop(self, name: str) -> Training:
        """Stop a training after the step that is being made; what it has learnt is kept.

        Raises:
            ComposerError: there is no such training.
        """
        self.get(name)
        self._jobs.cancel(name)
        with self._changed:
            training = self._read()[name]
            if training.state == "waiting":
                self._update(name, state="stopped")
            elif training.state == "running":
                self._update(name, state="stopping")
        return self.get(name)

    def forget(self, name: str) -> None:
        """Delete a training that does not run; a finished gate file stays.

        Raises:
            ComposerError: it runs, or there is none.
        """
        if self.get(name).active:
            raise ComposerError(f"The training {name!r} runs: stop it first.")
        with self._changed:  # a run that has just ended would write it again in between
            self._files.forget(name)
            self._read().pop(name, None)
            self._changed.notify_all()

    # --- how it goes

    def _submit(self, training: Training, *, resume: bool) -> Training:
        name = training.name
        with self._changed:
            known = self._read().get(name)
            if known is not None and known.active:
                raise ComposerError(f"The training {name!r} is {known.state} already.")
            self._files.write(training)
            self._read()[name] = training
            self._changed.notify_all()
        assert self.gates is not None  # it is checked
        run = Run(
            files=self._files,
            gates=self.gates,
            lend=self._lend,
            turns=self._turns,
            get=lambda: self.get(name),
            update=lambda **changes: self._update(name, **changes),
            keep=lambda: self._keep(name),
        )

        def work(cancelled: Callable[[], bool]) -> Iterator[None]:
            run.go(cancelled, resume=resume)
            yield from ()

        self._jobs.submit(work, owner=name, title=name)
        return self.get(name)

    def _check(self, request: TrainingRequest) -> None:
        for name in request.loras:
            self._card(name)
        if self.gates is None:
            raise ComposerError(
                "There is no LoRA folder to write gates into: start Composer with one."
            )
        from composer.files import check_writable

        output = self._files.output(request.name)
        request.config(output)
        check_writable(self.gates / output.name)
        if request.paper:
            self._check_clip(request.clip)

    def _check_clip(self, name: str) -> None:
        from composer.diffusion.clip import check_clip

        if name:
            check_clip(name)
        else:
            self._own_clip()

    def _taken(self, name: str) -> bool:
        """Whether the name is used, in another spelling too: not every disk tells them apart."""
        # one that failed before its first step leaves its name to the next try
        used = {t.name.casefold() for t in self.all() if t.state != "failed" or t.history}
        if self.gates is not None:
            used |= {path.stem.casefold() for path in self.gates.glob("*.safetensors")}
        return name.casefold() in used

    def _as_it_stands(self, training: Training) -> Training:
        if training.state == "running":
            return replace(training, gives_way=self._turns.pictures_first)
        if training.state == "waiting":
            places = {line.owner: line.place for line in self._jobs.lines()}
            return replace(training, ahead=places.get(training.name, 0))
        return training

    def _update(self, name: str, **changes: Any) -> None:
        with self._changed:
            if name in self._read():
                self._read()[name] = replace(self._read()[name], **changes)
                self._changed.notify_all()

    def _keep(self, name: str) -> None:
        with self._changed:
            if name in self._read():
                self._files.write(self._read()[name])

    def _read(self) -> dict[str, Training]:
        if self._known is None:
            self._known = {training.name: training for training in self._files.read()}
        return self._known
