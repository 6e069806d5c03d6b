"""The studio: one model, one library, one history, and one job at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from composer.errors import ComposerError
from composer.fusions import Offer
from composer.fusions.offers import offers_of
from composer.fusions.rows import ALWAYS
from composer.studio.comparing import Comparison, Way, ways_of
from composer.studio.events import Event, Finished, Queued
from composer.studio.history import History, SavedPicture
from composer.studio.jobs import Job, JobQueue, Waiting
from composer.studio.recall import Recalled, recall, unlike
from composer.studio.requests import ComposeRequest
from composer.studio.trainings import Trainings
from composer.studio.turns import Turns
from composer.studio.wording import Wording

# PyTorch, diffusers and transformers take seconds to import. They are imported on the studio's own
# thread, so that the page answers meanwhile.
if TYPE_CHECKING:
    from composer.evaluation.conflicts import Conflicts
    from composer.experts.card import Card
    from composer.experts.tools import Tool
    from composer.fusions import Plan, Recipe
    from composer.fusions.libraries import Libraries
    from composer.studio.axes import GridCell
    from composer.studio.engine import Engine
    from composer.studio.grid import Filled, GridFolder
    from composer.studio.lending import Lent


@dataclass(frozen=True, kw_only=True)
class Status:
    """Whether the studio can paint: what stands in its way, or what it has loaded."""

    state: Literal["loading", "ready", "failed"]
    message: str = ""
    model: str = ""
    model_hash: str = ""
    vae: str = ""  # the name of one in place of the model's
    size: int = 0  # the model's own side, in pixels
    multiple: int = 1


class Studio:
    """Paints pictures with several LoRAs at once. Safe to use from several threads.

    model: a diffusers folder, a checkpoint file, or a hub name.
    lora_dirs: folders of LoRA files; trained gates are in their folders `gates/`, tuned weights in
        `weights/`, MixLoRAs in `mixlora/`, embeddings in `embeddings/`.
    output_dir: where pictures are kept.
    device, dtype, vae, lowvram: as for `load_model`.
    partial: whether LoRAs are used of which much does nothing for this model.
    language_model, adapter: what makes full prompts of a few words; see `Wording`.
    """

    def __init__(
        self,
        model: str | Path,
        lora_dirs: Iterable[str | Path],
        output_dir: str | Path,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        vae: str | Path | None = None,
        lowvram: bool = False,
        partial: bool = False,
        language_model: str | Path | None = None,
        adapter: str | Path | None = None,
    ) -> None:
        self.history = History(Path(output_dir))
        self._model = str(model)
        self._lora_dirs = tuple(lora_dirs)
        self._options: dict[str, Any] = {"device": device, "dtype": dtype, "vae": vae}
        self._options |= {"lowvram": lowvram, "partial": partial}
        self._turns = Turns()
        self._jobs: JobQueue[Event] = JobQueue(self._turns.picture)
        self._status = Status(state="loading", message="Loading the libraries")
        self._changed = threading.Condition()
        self._engine: Engine | None = None
        self._started = False
        first = next(iter(self._lora_dirs), None)
        self.trainings = Trainings(
            Path(output_dir) / "trainings",
            None if first is None else Path(first).expanduser() / "gates",
            card=self.card,
            lend=self._lend,
            turns=self._turns,
            own_clip=self._check_own_clip,
        )
        self.wording = Wording(
            language_model, adapter, device=device, card=self.card, before=self.wait
        )

    # --- what there is

    @property
    def status(self) -> Status:
        """What the studio is doing with its model."""
        return self._status

    @property
    def queue(self) -> tuple[Waiting, ...]:
        """The jobs: the one that runs, and those that wait."""
        return self._jobs.lines()

    def start(self) -> None:
        """Begin to load the model, on the studio's thread; returns at once."""
        with self._changed:
            if self._started:
                return
            self._started = True
        self._jobs.submit(self._load, owner="studio", title="Load the model")

    def wait(self, timeout: float | None = None) -> Status:
        """Wait until the model is loaded, or failed to, or the time is over."""
        self.start()
        with self._changed:
            self._changed.wait_for(lambda: self._status.state != "loading", timeout)
        return self._status

    @cached_property
    def libraries(self) -> Libraries:
        """The files at hand."""
        from composer.fusions.libraries import Libraries

        return Libraries(self._lora_dirs)

    def cards(self, *, refresh: bool = False) -> tuple[Card, ...]:
        """The LoRAs, those with an error included, with their share at work once a model is there.

        Raises:
            ComposerError: a folder is missing.
        """
        cards = self.libraries.cards(refresh=refresh)
        return cards if self._engine is None else self._engine.with_shares(cards)

    def card(self, name: str) -> Card:
        """The card of the LoRA of that name.

        Raises:
            ComposerError: there is none, or it cannot be used; the message names close ones.
        """
        return self.libraries.lora(name)

    def lend(self, recipe: type[Recipe], path: str | Path) -> str:
        """Add one file for a recipe from anywhere, for whoever may name paths. Returns its name.

        Raises:
            ComposerError: it is of another kind.
        """
        return self.libraries.of(recipe).lend(Path(path)).name

    def offers(self, *, tuned: bool = False) -> tuple[tuple[Offer, ...], tuple[str, ...]]:
        """What fits the loaded model and the LoRAs at hand, and what is wrong with the other files.

        Nothing fits while no model is loaded. tuned: whether tuned weights are offered, too.
        """
        if self._status.state != "ready":
            return (), ()
        return offers_of(self.libraries, self._status.model, self._status.model_hash, tuned=tuned)

    def triggers(self, recipe: Recipe) -> tuple[str, ...]:
        """The words that call what a recipe's own file has learned.

        Raises:
            ComposerError: there is none of that name, or it cannot be used.
        """
        return recipe.triggers(self.libraries)

    def recall(self, picture: SavedPicture) -> Recalled:
        """What to ask for to get a picture again, and what is not as it was then.

        LoRAs are found by the hash of their tensors where their names do not lead to them.

        Raises:
            ComposerError: the picture does not say, or asks for what cannot be.
        """
        record = picture.record
        recalled = recall(record, self.libraries)
        if self._engine is None:
            return recalled
        return replace(recalled, notes=(*recalled.notes, *unlike(record, self._engine.model)))

    # --- pictures

    def compose(self, request: ComposeRequest, *, owner: str = "") -> Iterator[Event]:
        """Paint. The request is checked against the library now; the rest comes as one iterates.

        owner: whose job it is, for `interrupt`. Closing the iterator cancels the job.

        Raises:
            ComposerError: here or while iterating; the next job is not harmed.
        """
        asked, plan = self._resolve(request)

        def work(engine: Engine, cancelled: Callable[[], bool]) -> Iterator[Event]:
            from composer.studio.painting import paint

            return paint(engine, self.history, asked, plan, cancelled)

        return self._work(work, owner, asked.request.prompt)

    def ways(self, comparison: Comparison) -> tuple[Way, ...]:
        """What a comparison comes to, checked against the library; gates and best known weights
        only for a loaded model.

        Raises:
            ComposerError: a LoRA cannot be used, or nothing is left to compare.
        """
        asked = comparison.asked.merged(lambda name: self.card(name).name)
        infos = {row.name: self.card(row.name).info for row in asked.rows if row.active}
        return ways_of(
            asked,
            comparison.lines,
            self.offers(tuned=True)[0],
            lambda name: infos[name].title or name,
            [name for name, info in infos.items() if info.tool is not None],
        )

    def grid(
        self,
        cells: Sequence[GridCell],
        folder: GridFolder | None = None,
        *,
        scored: bool = False,
        clip: str = "",
        dino: str = "",
        references: Mapping[str, Path] | None = None,
        owner: str = "",
    ) -> Iterator[Event | Filled]:
        """Paint the pictures of these cells that the folder lacks, as one job; otherwise as
        `compose`. A `Filled` comes for every cell that has its picture, and before it is over
        another one with its scores.

        folder: the studio's own unless given, whose pictures are in the history.
        scored: whether LoRAs and the bare model are asked about each.
        clip, dino: folders or hub names of encoders that score them too.
        references: by LoRA, a folder with pictures of what it teaches, for these encoders.

        Raises:
            ComposerError: as `compose`; an encoder or a reference cannot be used.
        """
        from composer.diffusion.clip import CLIP, DINO, Encoder, check_encoder

        named = [(kind, name) for kind, name in ((CLIP, clip), (DINO, dino)) if name]
        for kind, name in named:
            check_encoder(kind, name)
        resolved = [(cell, *self._resolve(cell.asked)) for cell in cells]
        known = {name for _, _, plan in resolved for name in plan.paths}
        shown = self._references(references or {}, known)
        if shown and not named:
            raise ComposerError(
                "Reference pictures are compared by a CLIP or a DINO: name one of them too."
            )
        folder = folder or self._painted

        def work(engine: Engine, cancelled: Callable[[], bool]) -> Iterator[Event | Filled]:
            from composer.studio.grid import paint_grid
            from composer.studio.scores import score_cells

            over = Finished()
            for event in paint_grid(engine, folder, resolved, cancelled):
                if isinstance(event, Finished):
                    over = event
                else:
                    yield event
            encoders = [
                Encoder.load(kind, name, engine.model.device)
                for kind, name in named
                if not cancelled()
            ]
            yield from score_cells(
                engine,
                folder,
                resolved,
                cancelled,
                asked=scored,
                encoders=encoders,
                references=shown,
            )
            yield replace(over, cancelled=cancelled())

        title = f"Compare: {cells[0].asked.request.prompt}" if cells else "Compare"
        return self._work(work, owner, title)

    def _references(
        self, folders: Mapping[str, Path], known: Collection[str]
    ) -> dict[str, list[Path]]:
        """The pictures of each folder, by the LoRA's full name. known: the LoRAs of the grid."""
        from composer.training.pictures import pictures_in

        found: dict[str, list[Path]] = {}
        for name, folder in folders.items():
            if (full := self.card(name).name) not in known:
                raise ComposerError(
                    f"The reference {name}={folder} is of a LoRA that no picture has: name one of "
                    f"{', '.join(sorted(known)) or 'those that are given'}."
                )
            found[full] = pictures_in(folder.expanduser())
        return found

    def conflicts(self, request: ComposeRequest, *, owner: str = "") -> Iterator[Event | Conflicts]:
        """Measure what the LoRAs of a request do to each other in its weighted sum, with its prompt
        also on some steps of the bare model; as one job, whose last event but `Finished` is the
        report.

        Raises:
            ComposerError: as `compose`, or no LoRA is active.
        """
        asked, plan = self._resolve(request)

        def work(engine: Engine, cancelled: Callable[[], bool]) -> Iterator[Event | Conflicts]:
            from composer.studio.conflicts import examine

            return examine(engine, plan, asked.request.prompt, cancelled)

        return self._work(work, owner, "Check LoRAs")

    @cached_property
    def _painted(self) -> GridFolder:
        from composer.studio.grid import GridFolder

        return GridFolder(self.history.folder, self.history)

    def _work(
        self,
        work: Callable[[Engine, Callable[[], bool]], Iterator[Any]],
        owner: str,
        title: str,
    ) -> Iterator[Any]:
        """A job with the loaded model; ComposerError where none could be loaded."""
        self.start()

        def loaded(cancelled: Callable[[], bool]) -> Iterator[Any]:
            if self._engine is None:
                raise ComposerError(self._status.message)
            return work(self._engine, cancelled)

        return self._follow(self._jobs.submit(loaded, owner=owner, title=title))

    def active(self, asked: ComposeRequest) -> tuple[str, ...]:
        """The LoRAs that would be active in a picture, by the library's names.

        Raises:
            ComposerError: as `compose`, for what is known without a model.
        """
        _, plan = self._resolve(asked)
        return plan.recipe.loras(plan)

    def interrupt(self, owner: str | None = None) -> bool:
        """Stop the jobs of this owner within one step, also those that wait; None: what runs.

        Returns whether there was anything to stop.
        """
        return self._jobs.cancel(owner) > 0

    def _follow(self, job: Job[Event]) -> Iterator[Event]:
        over = False
        for event in self._jobs.follow(job, waiting=lambda ahead: Queued(ahead=ahead)):
            over = over or isinstance(event, Finished)
            yield event
        if not over:  # cancelled while it waited
            yield Finished(cancelled=True)

    def _resolve(self, asked: ComposeRequest) -> tuple[ComposeRequest, Plan]:
        """The request with tags as rows and LoRAs by their full names, and the plan for it."""
        merged = asked.merged(lambda name: self.card(name).name)
        tools = {row.name: row for row in merged.rows if row.active and self._tool(row.name)}
        for row in tools.values():
            if (row.steps, row.depth) != (ALWAYS, ALWAYS):
                raise ComposerError(
                    f"The LoRA {row.name!r} is for few steps and acts in all of them, everywhere: "
                    "take its limits away."
                )
        others = [row for row in merged.rows if row.name not in tools]
        plan = merged.recipe.plan(others, merged.pins, self.libraries)
        paths = {name: self.card(name).path for name in sorted(tools)}
        prompts = (merged.request.prompt, merged.request.negative_prompt)
        embeddings = self.libraries.embeddings_in(prompts, (*plan.paths.values(), *paths.values()))
        return merged, replace(plan, tools=tools, tool_paths=paths, embeddings=embeddings)

    def _tool(self, name: str) -> Tool | None:
        """How a LoRA wants a model to sample, if it is for few steps."""
        return self.card(name).info.tool

    def settled(self, asked: ComposeRequest, given: Collection[str]) -> ComposeRequest:
        """The request with the settings of its tools, LoRAs for few steps, but for those `given` by
        the user; of several tools, those of the first."""
        merged = asked.merged(lambda name: self.card(name).name)
        for row in merged.rows:
            if row.active and (tool := self._tool(row.name)):
                own = {name: v for name, v in tool.settings.items() if name not in given}
                if "sampler" in given:  # whose schedules are others
                    own.pop("schedule", None)
                return replace(asked, request=replace(asked.request, **own))
        return asked

    def _lend(self, names: Sequence[str]) -> Lent:
        """A copy of the model to train on, and experts for it; waits for the jobs before."""
        self.start()
        lent: list[Lent] = []

        def work(cancelled: Callable[[], bool]) -> Iterator[Event]:
            from composer.studio.lending import Lent, copy_for_training

            engine = self._engine
            if engine is None:
                raise ComposerError(self._status.message)
            experts = tuple(engine.read(name, self.card(name).path) for name in names)
            engine.release()  # what is attached would be copied with the model
            lent.append(Lent(model=copy_for_training(engine.model), experts=experts))
            yield from ()

        job = self._jobs.submit(work, owner="trainings", title="Prepare a training")
        list(self._jobs.follow(job, waiting=lambda ahead: Queued(ahead=ahead)))
        if not lent:
            raise ComposerError("The preparation was interrupted: continue the training.")
        return lent[0]

    def _check_own_clip(self) -> None:
        """Refuse a model without a CLIP of its own; while none is loaded nothing is known of it."""
        if self._engine is not None:
            from composer.diffusion.clip import own_clip

            own_clip(self._engine.model)

    def _clean(self) -> None:
        """Delete what was being written when an earlier process was killed."""
        with contextlib.suppress(OSError):  # a folder that is not to be listed
            self.history.clean()
            self.trainings.clean()
        self.libraries.clean()

    def _load(self, cancelled: Callable[[], bool]) -> Iterator[Event]:
        self._clean()
        try:
            from composer.studio.engine import Engine

            self._tell(Status(state="loading", message="Loading the model"))
            engine = Engine.load(self._model, **self._options)
        except ComposerError as error:
            self._tell(Status(state="failed", message=str(error)))
        except Exception as error:
            message = (
                f"The model {self._model} cannot be loaded ({type(error).__name__}: {error}). "
                "Start Composer with another model."
            )
            self._tell(Status(state="failed", message=message))
        else:
            self._engine = engine
            model = engine.model
            self._tell(
                Status(
                    state="ready",
                    model=model.name,
                    model_hash=model.hash,
                    vae=model.vae_name,
                    size=model.size,
                    multiple=model.multiple,
                )
            )
        yield from ()

    def _tell(self, status: Status) -> None:
        with self._changed:
            self._status = status
            self._changed.notify_all()
