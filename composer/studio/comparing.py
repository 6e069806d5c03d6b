"""The same prompt and seeds in several ways, side by side: each LoRA alone, merged, by gates."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from composer.clock import Clock
from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.fusions import RECIPES, LoraRow, Offer, Plan, Recipe, Sum
from composer.fusions.rows import ALWAYS
from composer.studio.axes import (
    ALONE,
    BARE,
    Axis,
    Change,
    GridCell,
    cells_of,
    read_axis,
    with_loras_of,
)
from composer.studio.events import Event, Finished, PictureSaved, Progress, Started
from composer.studio.requests import ComposeRequest

if TYPE_CHECKING:
    from composer.studio.engine import Engine
    from composer.studio.history import History, SavedPicture

MOST_SEEDS = 4
SAME = ", the same as "


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the choice of what to compare.

    title, brief: for people.
    usual: whether it is wanted unless something else is said.
    each: it comes to a way for each LoRA. offered: it comes to one for each offer that fits.
    none: what to say where no offer fits; page: where files for it are made, or command: how.
    """

    title: str
    brief: str
    usual: bool = True
    each: bool = False
    offered: bool = False
    none: str = ""
    page: str = ""
    command: str = ""


def _line(kind: type[Recipe]) -> Line:
    even = kind.evenly(2)
    return Line(
        title=even[0] if even else kind.title,
        brief=kind.brief,
        usual=kind.usual,
        offered=even is None,
        none=kind.none,
        page=kind.page,
    )


BEST = "best"
LINES: Mapping[str, Line] = {
    BARE: Line(title="Without LoRAs", brief="what the model makes of the prompt by itself"),
    ALONE: Line(title="Each LoRA alone", brief="with weight 1", each=True),
    "yours": Line(title="Your weights", brief="added up as you set them above"),
    BEST: Line(
        title="Best known weights",
        brief="found by trying many",
        offered=True,
        none="none are known for just these LoRAs.",
        command="composer tune-weights",
    ),
    **{name: _line(kind) for name, kind in RECIPES.items()},
}
"""What can be compared: sums of other rows or with other weights, and each recipe, with weights of
1."""

USUAL: tuple[str, ...] = tuple(name for name, line in LINES.items() if line.usual)


def line_of(offer: Offer) -> str:
    """The line of `LINES` to which an offer belongs."""
    return BEST if offer.weights else offer.recipe.kind


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared: a prompt, its seeds and sampling, the LoRAs, and in which ways.

    request: its `count` is the number of seeds, from its `seed` on.
    rows: the LoRAs with the user's weights; those that are off take no part.
    lines: which of `LINES` are wanted.
    axes: what else changes, the slowest first.
    """

    request: Request = field(default_factory=Request)
    rows: tuple[LoraRow, ...] = ()
    lines: tuple[str, ...] = USUAL
    axes: tuple[Axis, ...] = ()

    def __post_init__(self) -> None:
        if not self.lines:
            raise ComposerError("There is nothing to compare: choose one way or more.")
        if unknown := next((line for line in self.lines if line not in LINES), None):
            raise ComposerError(f"There is no way {unknown!r}. Choose from: {', '.join(LINES)}.")
        if self.request.count > MOST_SEEDS:
            raise ComposerError(
                f"{self.request.count} seeds are too many to compare: choose 1 to {MOST_SEEDS}."
            )
        if any(axis.name == "way" for axis in self.axes):
            raise ComposerError("The ways are chosen by name: take the axis 'way' out.")

    @property
    def asked(self) -> ComposeRequest:
        """The picture with the user's weights."""
        return with_loras_of(self.axes, ComposeRequest(request=self.request, rows=self.rows))


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of fusing the LoRAs: a column of the comparison, in words; `line` is its line's.

    key: by which it is known among the others.
    """

    line: str
    key: str
    title: str
    detail: str
    asked: ComposeRequest


def ways_of(
    asked: ComposeRequest,
    lines: Iterable[str],
    offers: Iterable[Offer],
    title: Callable[[str], str],
    tools: Collection[str] = (),
) -> tuple[Way, ...]:
    """The ways, in the order of `LINES`. One that comes to the same as another is made once.

    asked: with its tags turned into rows; its seed is drawn here, once for all ways.
    offers: what is at hand; that for other LoRAs than these is left out.
    title: what people call a LoRA.
    tools: those of the LoRAs that are for few steps. They are at work in every way, as the user
        set them, for the settings are theirs.

    Raises:
        ComposerError: no LoRA is active but tools, or nothing is left to compare.
    """
    active = [row for row in asked.rows if row.active]
    rows = tuple(row for row in active if row.name not in tools)
    always = tuple(row for row in active if row.name in tools)
    if not rows:
        beside = f" beside {title(always[0].name)}, which is in every way" if always else ""
        raise ComposerError(f"No LoRA is chosen{beside}. Choose one or more to compare.")
    asked = replace(asked, request=asked.request.drawn())
    found: dict[Any, Way] = {}
    for line, name, detail, recipe, chosen in _laid_out(rows, tuple(offers), title):
        if line not in lines:
            continue
        way = Way(
            line=line,
            key=_key(line, recipe, chosen),
            title=name,
            detail=detail,
            asked=replace(asked, rows=(*chosen, *always), recipe=recipe, gate_map=recipe.gated),
        )
        outcome = recipe.outcome(
            sorted((row for row in chosen if row.active), key=lambda row: row.name)
        )
        if outcome in found:
            first, more = found[outcome], name[0].lower() + name[1:]
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


def _key(line: str, recipe: Recipe, rows: Sequence[LoraRow]) -> str:
    if line == ALONE:
        return f"{ALONE}:{rows[0].name}"
    return recipe.key if line in RECIPES else line


def _taking(way: Way) -> Change:
    return lambda asked: replace(way.asked, request=asked.request)


def cells_of_ways(
    ways: Sequence[Way], axes: Sequence[Axis]
) -> tuple[tuple[Axis, ...], tuple[GridCell, ...]]:
    """The cells of a comparison with all its axes: what varies, the seeds, and last the ways.

    Raises:
        ComposerError: as `cells_of`.
    """
    request = ways[0].asked.request
    if all(axis.name != "seed" for axis in axes):
        seeds = (str(request.seed_of(number)) for number in range(request.count))
        axes = (*axes, read_axis(f"seed={'|'.join(seeds)}"))
    across = Axis(
        name="way",
        places=tuple((way.key, _taking(way)) for way in ways),
        words={way.key: f"{way.title}\n{way.detail}" for way in ways},
    )
    axes = (*axes, across)
    return axes, cells_of(ways[0].asked, axes)


def _laid_out(
    rows: tuple[LoraRow, ...], offers: tuple[Offer, ...], title: Callable[[str], str]
) -> Iterator[tuple[str, str, str, Recipe, tuple[LoraRow, ...]]]:
    """Line, title, detail, recipe and rows of each way."""
    names = tuple(row.name for row in rows)
    full = tuple(LoraRow(name=row.name, place=row.place) for row in rows)

    def words(rows: Iterable[LoraRow]) -> str:
        return " + ".join(f"{title(row.name)} {_weight(row)}" for row in rows)

    def offered(line: str) -> Iterator[Any]:
        for offer in offers:
            if line_of(offer) == line and offer.fits(names):
                chosen = offer.rows(names)
                left = [title(row.name) for row in chosen] if offer.instead else []
                detail = " + ".join([offer.recipe.file, *left])
                detail = f"{words(chosen)}, {offer.found_by}" if offer.found_by else detail
                yield line, LINES[line].title, detail, offer.recipe, chosen

    yield BARE, LINES[BARE].title, "the model by itself", Sum(), ()
    for row in full:
        yield ALONE, f"{title(row.name)} alone", "weight 1", Sum(), (row,)
    yield "yours", LINES["yours"].title, words(rows), Sum(), rows
    yield from offered(BEST)
    for kind, recipe in RECIPES.items():
        if even := recipe.evenly(len(rows)):
            yield kind, *even, recipe(), full
        yield from offered(kind)


def suggested(ways: Sequence[Way]) -> tuple[list[int], list[int]]:
    """The numbers of the ways to look at first side by side, the best choice first: the user's
    weights or weights of 1, and gates."""
    sums = [n for line in ("yours", Sum.kind) for n, way in enumerate(ways) if way.line == line]
    return sums, [n for n, way in enumerate(ways) if way.asked.recipe.gated]


def _weight(row: LoraRow) -> str:
    aside = [] if row.text_encoder is None else [f"text {row.text_encoder:g}"]
    for part, (start, end) in (("steps", row.steps), ("depth", row.depth)):
        if (start, end) != ALWAYS:
            aside.append(f"{part} {100 * start:.0f} to {100 * end:.0f} %")
    return f"{row.weight:g}" + (f" ({', '.join(aside)})" if aside else "")


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
    begun, clock, noted = time.monotonic(), Clock(), set[str]()
    finished: list[SavedPicture] = []
    for number, (asked, plan) in enumerate(plans):
        if cancelled():
            break
        for event in paint(engine, history, asked, plan, cancelled):
            if isinstance(event, Started):
                # a note on a LoRA is given once
                notes = tuple(note for note in event.notes if note not in noted)
                noted.update(notes)
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
