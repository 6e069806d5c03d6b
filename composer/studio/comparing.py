"""The same prompt and seeds in several ways, side by side: each LoRA alone, merged, by gates."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from composer.clock import Clock
from composer.diffusion.request import RANDOM_SEED, SEEDS, Request
from composer.errors import ComposerError
from composer.fusions import LoraRow, Normalised, Plan, Regions
from composer.fusions.rows import ALWAYS
from composer.studio.events import Event, Finished, PictureSaved, Progress, Started
from composer.studio.offers import GateOffer, MixLoraOffer, WeightOffer
from composer.studio.requests import ComposeRequest

if TYPE_CHECKING:
    from composer.studio.engine import Engine
    from composer.studio.history import History, SavedPicture

Kind = Literal["bare", "alone", "yours", "best", "equal", "average", "regions", "gates", "mixlora"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_SEEDS = 4
SAME = ", the same as "


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared: a prompt, its seeds and sampling, the LoRAs, and in which ways.

    request: its `count` is the number of seeds, from its `seed` on.
    rows: the LoRAs with the user's weights; those that are off take no part.
    kinds: which ways are wanted. "gates" stands for every gate file for just these LoRAs, "best"
        for the weights that a search found for just these, if there was one, "mixlora" for every
        MixLoRA that has learned what one of them calls, in the place of those.
    """

    request: Request = field(default_factory=Request)
    rows: tuple[LoraRow, ...] = ()
    kinds: tuple[Kind, ...] = KINDS

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ComposerError("There is nothing to compare: choose one way or more.")
        if unknown := next((kind for kind in self.kinds if kind not in KINDS), None):
            raise ComposerError(f"There is no way {unknown!r}. Choose from: {', '.join(KINDS)}.")
        if self.request.count > MOST_SEEDS:
            raise ComposerError(
                f"{self.request.count} seeds are too many to compare: choose 1 to {MOST_SEEDS}."
            )

    @property
    def asked(self) -> ComposeRequest:
        """The picture with the user's weights."""
        return ComposeRequest(request=self.request, rows=self.rows)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of fusing the LoRAs: a row of the comparison, told in words."""

    kind: Kind
    title: str
    detail: str
    asked: ComposeRequest


def ways_of(
    asked: ComposeRequest,
    kinds: Iterable[Kind],
    offers: Iterable[GateOffer],
    title: Callable[[str], str],
    known: Iterable[WeightOffer] = (),
    *,
    mixloras: Iterable[MixLoraOffer] = (),
    trigger: Callable[[str], str] = lambda name: "",
) -> tuple[Way, ...]:
    """The ways, in the order of `KINDS`. One that comes to the same as another is made once.

    asked: with its tags turned into rows; its seed is drawn here, once for all ways.
    offers: gates at hand; those for other LoRAs than these are left out.
    title: what people call a LoRA; trigger: the words that call it.
    known: weights that were found by a search; those for other LoRAs are left out.
    mixloras: those at hand; one that has learned nothing of these LoRAs is left out.

    Raises:
        ComposerError: no LoRA is active, or nothing is left to compare.
    """
    rows = tuple(row for row in asked.rows if row.active)
    if not rows:
        raise ComposerError("No LoRA is chosen. Choose one or more to compare.")
    if asked.request.seed == RANDOM_SEED:
        drawn = replace(asked.request, seed=secrets.randbelow(SEEDS))
        asked = replace(asked, request=drawn)
    found: dict[Any, Way] = {}
    placed = _placed(asked, rows, mixloras, title, trigger)
    for way in (*_laid_out(asked, rows, offers, title, known), *placed):
        if way.kind not in kinds:
            continue
        outcome = _outcome(way.asked)
        if outcome in found:
            first, more = found[outcome], way.title[0].lower() + way.title[1:]
            joint = ", " if SAME in first.detail else SAME
            found[outcome] = replace(first, detail=first.detail + joint + more)
        else:
            found[outcome] = way
    if not found:
        raise ComposerError(
            "No trained gates and no best known weights are for just these LoRAs, and no MixLoRA "
            "has learned what they call. Train some, tune them with `composer tune-weights`, or "
            "choose another way."
        )
    return tuple(found.values())


def _laid_out(
    asked: ComposeRequest,
    rows: tuple[LoraRow, ...],
    offers: Iterable[GateOffer],
    title: Callable[[str], str],
    known: Iterable[WeightOffer],
) -> Iterator[Way]:
    full = tuple(LoraRow(name=row.name) for row in rows)
    many = len(rows)

    def way(kind: Kind, title: str, detail: str, rows: tuple[LoraRow, ...], **how: Any) -> Way:
        return Way(kind=kind, title=title, detail=detail, asked=replace(asked, rows=rows, **how))

    yield way("bare", "Without LoRAs", "the model by itself", ())
    for row in full:
        yield way("alone", f"{title(row.name)} alone", "weight 1", (row,))
    names = {row.name for row in rows}

    def words(rows: Iterable[LoraRow]) -> str:
        return " + ".join(f"{title(row.name)} {_weight(row)}" for row in rows)

    yield way("yours", "Your weights", words(rows), rows)
    if found := next((offer for offer in known if set(offer.weights) == names), None):
        best = tuple(LoraRow(name=row.name, weight=found.weights[row.name]) for row in rows)
        yield way("best", "Best known weights", f"{words(best)}, {found.told}", best)
    yield way("equal", "Weights of 1", "each in full, added up", full)
    share = f"each at 1/{many}" if many > 1 else "weight 1"
    yield way("average", "Average (NLA)", share, full, recipe=Normalised())
    if many > 1:
        yield way("regions", "Trigger regions", "each where its words act", full, recipe=Regions())
    for offer in offers:
        if set(offer.loras) == names:
            yield way(
                "gates", "Learned gates", offer.name, full, recipe=offer.recipe, gate_map=True
            )


def _placed(
    asked: ComposeRequest,
    rows: tuple[LoraRow, ...],
    offers: Iterable[MixLoraOffer],
    title: Callable[[str], str],
    trigger: Callable[[str], str],
) -> Iterator[Way]:
    """MixLoRAs in the place of the LoRAs whose triggers they know, the others in full."""
    for offer in offers:
        left = tuple(LoraRow(name=r.name) for r in rows if not offer.knows(trigger(r.name)))
        if len(left) < len(rows):
            detail = " + ".join([offer.name, *(title(row.name) for row in left)])
            placed = replace(asked, rows=left, recipe=offer.recipe)
            yield Way(kind="mixlora", title="MixLoRA", detail=detail, asked=placed)


def _weight(row: LoraRow) -> str:
    said = [] if row.text_encoder is None else [f"text {row.text_encoder:g}"]
    for part, (start, end) in (("steps", row.steps), ("depth", row.depth)):
        if (start, end) != ALWAYS:
            said.append(f"{part} {100 * start:.0f} to {100 * end:.0f} %")
    return f"{row.weight:g}" + (f" ({', '.join(said)})" if said else "")


def _outcome(asked: ComposeRequest) -> object:
    """Equal for two requests that give the same pictures."""
    active = sorted((row for row in asked.rows if row.active), key=lambda row: row.name)
    return asked.recipe.outcome(active)


def paint_each(
    engine: Engine,
    history: History,
    plans: Sequence[tuple[ComposeRequest, Plan]],
    cancelled: Callable[[], bool],
) -> Iterator[Event]:
    """Make the pictures of requests with as many pictures each, plan by plan, as one job.

    Progress counts over all of them; pictures come plan by plan, and within a plan seed by seed.

    Raises:
        ComposerError: what is asked for cannot be. A file that cannot be used is found before the
            first picture is begun.
    """
    from composer.studio.painting import paint

    for _, plan in plans:
        for name, path in plan.paths.items():
            engine.read(name, path)
    begun, clock, told = time.monotonic(), Clock(), set[str]()
    finished: list[SavedPicture] = []
    for number, (asked, plan) in enumerate(plans):
        if cancelled():
            break
        for event in paint(engine, history, asked, plan, cancelled):
            if isinstance(event, Started):
                # what is to be known of a LoRA is told once
                notes = tuple(note for note in event.notes if note not in told)
                told.update(notes)
                yield replace(event, notes=notes)
            elif isinstance(event, Progress):
                yield _overall(event, number, len(plans), clock)
            elif isinstance(event, PictureSaved):
                finished.append(event.saved)
                yield event
    yield Finished(
        pictures=tuple(finished), cancelled=cancelled(), seconds=time.monotonic() - begun
    )


def _overall(event: Progress, number: int, plans: int, clock: Clock) -> Progress:
    """The progress of one plan as that of the whole job."""
    first, done = number * event.count, number * event.steps + event.step
    clock.total = plans * event.steps
    return replace(
        event,
        step=done,
        steps=clock.total,
        pictures=range(first + event.pictures.start, first + event.pictures.stop),
        count=plans * event.count,
        seconds_left=clock.seconds_left(done),
    )
