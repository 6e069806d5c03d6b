"""One job: from a plan to finished pictures on the disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from composer.diffusion.memory import within_memory
from composer.diffusion.record import LoraRecord, PictureRecord
from composer.diffusion.request import Request
from composer.diffusion.sample import Picture, Step, generate
from composer.experts import Expert
from composer.experts.triggers import without_words
from composer.fusions.gate_record import GateRecord
from composer.studio.engine import Engine
from composer.studio.events import Event, Finished, PictureSaved, Progress, Started
from composer.studio.gating import Plan
from composer.studio.history import History, SavedPicture
from composer.studio.requests import find_fusion

PREVIEWS = 12  # for each batch of pictures, at most about so many


@dataclass(frozen=True, kw_only=True)
class _Mixed:
    """What speaks in the pictures to come, as their records tell it."""

    loras: tuple[LoraRecord, ...]
    fusion: Mapping[str, Any]
    notes: tuple[str, ...]


def paint(
    engine: Engine, history: History, plan: Plan, cancelled: Callable[[], bool]
) -> Iterator[Event]:
    """Make the pictures of a plan.

    Raises:
        ComposerError: what is asked for cannot be; the next job is not harmed.
    """
    begun, model = time.monotonic(), engine.model
    request = plan.asked.request.resolve(size=model.size, multiple=model.multiple)
    mixed = _mix(engine, plan)
    speak = sorted(lora.name for lora in mixed.loras)
    if plan.placing is not None:
        speak.insert(0, plan.placing.card.name)
    yield Started(loras=tuple(speak), notes=mixed.notes)
    finished: list[SavedPicture] = []
    with contextlib.closing(_pieces(engine, request, plan.asked.gate_map, cancelled)) as pieces:
        for piece, said in pieces:
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
                loras=mixed.loras,
                fusion=mixed.fusion,
                model_name=model.name,
                model_hash=model.hash,
            )
            finished.append(history.save(piece.image, record, said))
            yield PictureSaved(saved=finished[-1])
    yield Finished(
        pictures=tuple(finished), cancelled=cancelled(), seconds=time.monotonic() - begun
    )


def _mix(engine: Engine, plan: Plan) -> _Mixed:
    """Let those speak that the plan names, and no others."""
    if plan.gating is not None:
        gating = plan.gating
        experts = engine.mix_gated(gating)
        # What other programs can make of gates: a weight, 1 as the gates were trained.
        loras = tuple(
            _record(gating.loras[e.name].name, e, unet=strength, text_encoder=strength)
            for e in experts
            for strength in [gating.rows[e.name].strength]
        )
        return _Mixed(loras=loras, fusion=gating.told(), notes=tuple(_notes(experts)))
    fusion, weights = find_fusion(plan.asked.fusion), plan.asked.speaking
    experts = tuple(engine.read(name, plan.cards[name].path) for name in weights)
    limits = plan.asked.limits.among((row.name for row in plan.asked.rows), weights)
    engine.mix(experts, weights, fusion, plan.placing, limits)
    by_name = {expert.name: expert for expert in experts}
    loras = tuple(
        _record(row.name, by_name[row.name], **row.weights)
        for row in plan.asked.rows
        if row.name in by_name
    )
    notes = (*_notes(experts), *(_silent(plan, experts) if fusion.by_region else ()))
    if plan.placing is None:
        return _Mixed(loras=loras, fusion={"name": fusion.name} | limits.told(), notes=notes)
    more = plan.placing.notes(plan.asked.request.prompt)
    told = plan.placing.told() | limits.told()
    return _Mixed(loras=loras, fusion=told, notes=(*more, *notes))


def _record(name: str, expert: Expert, **weights: float) -> LoraRecord:
    return LoraRecord(name=name, sha256=expert.sha256, tensor_hash=expert.tensor_hash, **weights)


def _notes(experts: Sequence[Expert]) -> Iterator[str]:
    for expert in experts:
        if expert.unmatched:
            yield (
                f"{expert.name}: {len(expert.unmatched)} of its tensors belong to no part of this "
                f"model and were left out, e.g. {expert.unmatched[0]}."
            )


def _silent(plan: Plan, experts: Sequence[Expert]) -> Iterator[str]:
    """Those that this prompt does not call, among several that speak where their words act."""
    for expert in experts if len(experts) > 1 else ():
        words = expert.info.trigger.strip()
        if words and without_words(plan.asked.request.prompt, words) is None:
            yield (
                f"{expert.name}: its trigger, {words!r}, is not in the prompt, so it is silent. "
                "Write it there, or choose another fusion."
            )


def _pieces(
    engine: Engine, request: Request, gate_map: bool, cancelled: Callable[[], bool]
) -> Generator[tuple[Step | Picture, GateRecord | None], None, None]:
    """The sampling's pieces, and with each picture what the gates said of it if that is wanted."""
    pieces = within_memory(
        generate(
            engine.model,
            request,
            cancelled=cancelled,
            preview_every=max(1, request.steps // PREVIEWS),
            before_step=engine.at_step,
            regions=engine.regions(),
        ),
        request,
    )
    listener = engine.listener(guided=request.cfg_scale > 1) if gate_map else None
    if listener is None:
        for piece in pieces:
            yield piece, None
        return
    batch, said = range(0), dict[int, GateRecord]()
    with contextlib.closing(listener.follow(pieces)) as heard:
        for piece in heard:
            if isinstance(piece, Step):
                batch = piece.pictures
            elif piece.index not in said:
                said = dict(zip(batch, listener.take(), strict=False))
            yield piece, said.get(piece.index) if isinstance(piece, Picture) else None
