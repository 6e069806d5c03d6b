"""One job: from a plan to finished pictures on the disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from composer.diffusion.memory import within_memory
from composer.diffusion.record import LoraRecord, PictureRecord
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, Step, generate
from composer.errors import ComposerError
from composer.experts import Expert
from composer.experts.embedding import Embedding, named_in, read_embedding
from composer.fusions import LoraRow, Plan
from composer.fusions.gate_record import GateRecord
from composer.studio.engine import Engine
from composer.studio.events import Event, Finished, PictureSaved, Progress, Started
from composer.studio.history import History, SavedPicture
from composer.studio.requests import ComposeRequest

PREVIEWS = 12  # for each batch of pictures, at most about so many


def paint(
    engine: Engine,
    history: History,
    asked: ComposeRequest,
    plan: Plan,
    cancelled: Callable[[], bool],
) -> Iterator[Event]:
    """Make the pictures that were asked for, by the plan for them.

    Raises:
        ComposerError: what is asked for cannot be; the next job is not harmed.
    """
    begun, model = time.monotonic(), engine.model
    request = asked.request.resolve(size=model.size, multiple=model.multiple)
    for name, row in plan.rows.items():
        if row.place is not None and plan.recipe.by_places:
            row.place.check_shape(name, request.width or 0, request.height or 0)
    experts = engine.mix(plan)
    rows = {**plan.rows, **plan.tools}
    loras = tuple(_record(rows[name], expert) for name, expert in experts.items())
    fused = [expert for name, expert in experts.items() if name not in plan.tools]
    fusion = plan.recipe.to_record(plan)
    notes = (
        *plan.recipe.notes(plan, fused, request.prompt),
        *(_of_tool(experts[name], request) for name in plan.tools),
        *engine.notes,
        *_unplaced(plan),
        *_unused(experts.values()),
    )
    own = tuple(read_embedding(card.path, card.name) for card in plan.embeddings)
    embeddings = (*_brought(experts.values(), request), *own)
    yield Started(loras=(*plan.recipe.names(plan), *plan.tools), notes=notes)
    finished: list[SavedPicture] = []
    start = "" if asked.start is None else asked.start.fingerprint()
    with contextlib.closing(_pieces(engine, request, asked, embeddings, cancelled)) as pieces:
        for piece, gates in pieces:
            if isinstance(piece, Step):
                yield Progress(
                    step=piece.index + 1,
                    steps=piece.total,
                    pictures=piece.pictures,
                    count=request.count,
                    seconds_left=piece.seconds_left,
                    preview=piece.preview,
                )
                continue
            record = PictureRecord(
                request=piece.request,
                loras=loras,
                fusion=fusion,
                model_name=model.name,
                model_hash=model.hash,
                vae_name=model.vae_name,
                vae_hash=model.vae_hash,
                start=start,
                embeddings={embedding.name: embedding.sha256 for embedding in own},
            )
            finished.append(history.save(piece.image, record, gates))
            yield PictureSaved(saved=finished[-1])
    yield Finished(
        pictures=tuple(finished), cancelled=cancelled(), seconds=time.monotonic() - begun
    )


def _record(row: LoraRow, expert: Expert) -> LoraRecord:
    """Under gates the weight is that which other programs can make of them: 1 as trained."""
    return LoraRecord(
        name=row.name,
        sha256=expert.sha256,
        tensor_hash=expert.tensor_hash,
        share=round(expert.share, 4),
        **row.weights,
    )


def _of_tool(expert: Expert, request: Request) -> str:
    """That it is one, and how it is meant to be used where it is not."""
    tool = expert.info.tool
    assert tool is not None
    note = (
        f"{expert.name}: a LoRA for few steps ({tool.name}). It is added at its weight, whatever "
        "fuses the others."
    )
    if any(getattr(request, name) != value for name, value in tool.settings.items()):
        note += f" It is meant for {tool.words}."
    return note


def _unplaced(plan: Plan) -> Iterator[str]:
    """The LoRAs with a place that the recipe does not ask for."""
    if plan.recipe.by_places:
        return
    for name, row in plan.rows.items():
        if row.place is not None:
            yield (
                f"{name}: its place was not used. Choose the fusion 'places', each LoRA where you "
                "drew it."
            )


def _unused(experts: Iterable[Expert]) -> Iterator[str]:
    """What of the files does nothing here."""
    for expert in experts:
        if expert.unmatched:
            yield (
                f"{expert.name}: {len(expert.unmatched)} of its tensors belong to no part of this "
                f"model and were left out, e.g. {expert.unmatched[0]}. {expert.share:.0%} of the "
                "modules that it changes are at work."
            )


def _brought(experts: Iterable[Expert], request: Request) -> Iterator[Embedding]:
    """The embeddings that LoRAs bring along and the prompts name.

    Raises:
        ComposerError: two LoRAs bring one of the same name.
    """
    brought = [(embedding, expert) for expert in experts for embedding in expert.embeddings]
    prompts = (request.prompt, request.negative_prompt)
    for name in named_in(prompts, dict.fromkeys(embedding.name for embedding, _ in brought)):
        found = [(each, expert) for each, expert in brought if each.name == name]
        if len(found) > 1:
            both = " and ".join(repr(expert.name) for _, expert in found)
            raise ComposerError(
                f"The prompt holds {name!r}, an embedding of each of the LoRAs {both}. Take the "
                "word out, or all of these LoRAs but one."
            )
        yield found[0][0]


def _pieces(
    engine: Engine,
    request: Request,
    asked: ComposeRequest,
    embeddings: Sequence[Embedding],
    cancelled: Callable[[], bool],
) -> Generator[tuple[Step | Picture, GateRecord | None], None, None]:
    """The sampling's pieces, and with each picture what the gates gave if that is wanted."""
    pieces = within_memory(
        generate(
            engine.model,
            request,
            cancelled=cancelled,
            preview_every=max(1, request.steps // PREVIEWS),
            before_step=engine.at_step,
            regions=engine.regions(),
            passes=engine.in_passes(),
            start=asked.start,
            embeddings=embeddings,
        ),
        request,
    )
    recorder = engine.recorder(guided=request.cfg_scale > 1) if asked.gate_map else None
    if recorder is None:
        for piece in pieces:
            yield piece, None
        return
    batch, given = range(0), dict[int, GateRecord]()
    with contextlib.closing(recorder.follow(pieces)) as recorded:
        for piece in recorded:
            if isinstance(piece, Step):
                batch = piece.pictures
            elif piece.index not in given:
                given = dict(zip(batch, recorder.take(), strict=False))
            yield piece, given.get(piece.index) if isinstance(piece, Picture) else None
