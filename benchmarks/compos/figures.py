"""Two figures of sets of LoRAs: what is kept as LoRAs join, and what quality costs.

`python -m benchmarks.compos.figures` draws them again from the results files that are there.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.shared.options import FAMILIES, plain_parser, save_sheet
from benchmarks.shared.results import ROOT, Row, file_stem, in_table, number, read_results
from composer.fusions import RECIPES, Sum

NAME = "compos.figures"
SOURCE = "compos.toybox"
ALL, BY_KIND = "All sets", "Element by element"
"""Names of tables of `SOURCE`."""
FORMS: Mapping[str, tuple[str, ...]] = {
    "Sums and gates": ("sums", "learned"),
    "Merges": ("merges",),
    "Schedules": ("schedules",),
    "Passes": ("several_passes",),
}
"""Panels, and the modules of the recipes that are drawn in each."""
KEPT, RIGHT, GAIN = "kept (×)", "all named right", "gain over the sum (points)"
PASSES, FUSING, SECONDS = "passes", "fusing (s)", "a picture (s)"
"""Columns."""
LORAS = range(2, 6)
SEVERAL = 1.05
"""With more passes than these a way takes several."""
INK, PALE, LINE = "#1c1c20", "#686a72", "#d9dae0"
COLOURS = (
    "#2a6fdb",
    "#d1495b",
    "#2e9e6b",
    "#8e5bd0",
    "#d97b12",
    "#0f9fb5",
    "#b0468f",
    "#7a8b1f",
    "#9c6b4a",
    "#5566b8",
    "#c79a00",
    "#4d7f7a",
)
"""Of the ways of a panel, in their order."""
FORM_COLOURS = COLOURS[0], COLOURS[4], COLOURS[3], COLOURS[2]
DPI = 150
Points = list[tuple[int, float]]


def size_table(loras: int) -> str:
    """The name of the table of sets of so many LoRAs."""
    return f"{loras} LoRAs"


def draw(rows: Sequence[Row]) -> dict[str, Image.Image]:
    """The figures of these rows, by name; those that the rows have the figures for."""
    found: dict[str, Image.Image] = {}
    if any(_kept(rows).values()):
        found["compos.retention"] = retention(rows)
    if _costly(rows):
        found["compos.cost"] = cost(rows)
    return found


def retention(rows: Sequence[Row]) -> Image.Image:
    """What is kept of each LoRA against their number: a panel for each form of fusing."""
    kept = _kept(rows)
    panels = {t: [w for w in kept if _form(w) == t and w != Sum.title] for t in FORMS}
    across = 2
    figure = _figure(9.2, 3.8 * -(-len(panels) // across))
    axes = figure.subplots(-(-len(panels) // across), across, sharey=True).flat
    most = max([1.0, *(y for points in kept.values() for _, y in points)])
    for index, (axis, (title, ways)) in enumerate(zip(axes, panels.items(), strict=True)):
        ends: list[tuple[float, float, str, str]] = []
        for way, colour in [*zip(ways, _colours(ways), strict=True), (Sum.title, INK)]:
            if way not in kept:
                continue
            xs, ys = zip(*[(1, 1.0), *kept[way]], strict=True)
            plain = way == Sum.title
            axis.plot(
                xs,
                ys,
                "-o",
                color=colour,
                linewidth=2.4 if plain else 1.6,
                markersize=4.5 if plain else 3.5,
                zorder=3 if plain else 2,
            )
            ends.append((xs[-1], ys[-1], way, colour))
        _label_ends(axis, ends, most)
        axis.set_title(title, fontsize=11, color=INK, loc="left", pad=10)
        axis.set_xticks([1, *LORAS])
        axis.set_xlim(0.85, 7.5)
        axis.set_ylim(0, most * 1.04)
        axis.spines["bottom"].set_bounds(1, 5)
        axis.yaxis.set_major_formatter(_percent)
        axis.set_xlabel("LoRAs in a picture", x=0.36)
        if index % across == 0:
            axis.set_ylabel("elements right, as a part of alone")
        _plain(axis)
    return _image(figure)


def cost(rows: Sequence[Row]) -> Image.Image:
    """How often all named elements are right against the time of the first picture, of the ways
    that fuse every set; a line joins those that no faster one equals."""
    found: dict[str, tuple[float, Row]] = {
        str(row["fusion"]): (seconds(row), row) for row in _costly(rows)
    }
    figure = _figure(9.2, 6.2)
    axis = figure.subplots()
    axis.set_xscale("log")
    names: list[tuple[float, float, str, str]] = []
    bars: list[tuple[float, float, float]] = []
    for way, (time, row) in found.items():
        right, passes = number(row, RIGHT), number(row, PASSES)
        colour = _form_colour(way)
        low, high = number(row, f"{RIGHT} low"), number(row, f"{RIGHT} high")
        axis.plot([time, time], [low, high], color=colour, alpha=0.35, linewidth=1.4)
        bars.append((time, low, high))
        several = passes > SEVERAL
        marker = "D" if several else "o"
        axis.plot(time, right, marker, color=colour, markersize=6.5 if several else 7, zorder=3)
        more = f" · {passes:.2g} passes" if several else ""
        names.append((time, right, way + more, INK if way == Sum.title else colour))
    best = _frontier([(time, number(row, RIGHT)) for time, row in found.values()])
    axis.step(*zip(*best, strict=True), where="post", color=LINE, linewidth=4, zorder=0)
    times = [time for time, _ in found.values()]
    axis.set_xlim(min(times) / 1.25, max(times) * 2)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter(_time)
    axis.xaxis.set_minor_formatter(_some_times)
    axis.yaxis.set_major_formatter(_percent)
    axis.set_xlabel("seconds to the first picture: LoRAs fused and the picture made")
    axis.set_ylabel("all named elements right")
    _plain(axis)
    shapes = {"one pass of the U-Net": "o", "several passes": "D"}
    keys = [(title, "s", colour) for title, colour in zip(FORMS, FORM_COLOURS, strict=True)]
    keys += [(words, marker, PALE) for words, marker in shapes.items()]
    for title, marker, colour in keys:
        axis.plot([], [], marker, color=colour, label=title)
    figure.legend(
        loc="outside upper left",
        ncols=len(keys),
        fontsize=9,
        frameon=False,
        labelcolor=PALE,
        columnspacing=1.4,
        handletextpad=0.2,
    )
    _label_points(figure, axis, names, bars)
    return _image(figure)


def seconds(row: Row) -> float:
    """Until the first picture of a set: its LoRAs fused, and the picture made."""
    return number(row, FUSING) + number(row, SECONDS)


def whole(rows: Sequence[Row], table: str) -> list[Row]:
    """The rows of one table whose ways fuse every set; others are not compared with them."""
    found = in_table(rows, table)
    most = max((number(row, "sets") for row in found), default=0)
    return [row for row in found if row["sets"] == most]


def _costly(rows: Sequence[Row]) -> list[Row]:
    """Of all sets, the rows of ways in `FORMS` with their cost."""
    return [r for r in whole(rows, ALL) if SECONDS in r and _form(str(r["fusion"]))]


def _kept(rows: Sequence[Row]) -> dict[str, Points]:
    """By way, what is kept of each LoRA by their number; of the ways in `FORMS`."""
    found: dict[str, Points] = {}
    for loras in LORAS:
        for row in whole(rows, size_table(loras)):
            way = str(row["fusion"])
            if _form(way) and row[KEPT] is not None:
                found.setdefault(way, []).append((loras, number(row, KEPT)))
    return found


def _form(way: str) -> str:
    """The panel of a way, by its title; "" for none."""
    title = way.partition(":")[0]
    modules = {recipe.title: recipe.__module__.rpartition(".")[2] for recipe in RECIPES.values()}
    return next((form for form, some in FORMS.items() if modules.get(title) in some), "")


def _form_colour(way: str) -> str:
    return FORM_COLOURS[list(FORMS).index(_form(way))]


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that are higher than all to their left."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def _label_ends(axis: Any, ends: Sequence[tuple[float, float, str, str]], most: float) -> None:
    """The names of lines beside their ends, moved apart where they would overlap."""
    gap = most / 17
    last = max(x for x, _, _, _ in ends)
    columns = [[end for end in ends if (end[0] == last) is alike] for alike in (True, False)]
    placed = [
        (end, at)
        for column in columns
        for end, at in zip(column, _apart([y for _, y, _, _ in column], gap), strict=True)
    ]
    for (x, y, way, colour), at in placed:
        to_end = x == last  # else at the left, where no line is that falls from 1
        side = "left" if to_end else "right"
        axis.annotate(
            way,
            xy=(x + (0.06 if to_end else -0.06), y),
            xytext=(x + 0.4, at) if to_end else (x - 0.15, at - gap),
            horizontalalignment=side,
            color=colour,
            fontsize=9,
            fontweight="bold" if way == Sum.title else "normal",
            verticalalignment="center",
            path_effects=_halo(),
            arrowprops=_leader(colour, side),
        )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """The places, in their order and none below 0, at least `gap` from each other; as near as can
    be to where they were in the order of their groups."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[tuple[list[int], float]] = []  # the indices of a group, and its middle
    for index in order:
        group, middle = [index], max(places[index], 0.0)
        while groups and middle - gap * (len(group) - 1) / 2 < (
            groups[-1][1] + gap * (len(groups[-1][0]) - 1) / 2 + gap
        ):
            before, other = groups.pop()
            total = len(before) + len(group)
            middle = (other * len(before) + middle * len(group)) / total
            group = before + group
            middle = max(middle, gap * (total - 1) / 2)
        groups.append((group, middle))
    found = [0.0] * len(places)
    for group, middle in groups:
        for step, index in enumerate(group):
            found[index] = middle + gap * (step - (len(group) - 1) / 2)
    return found


def _label_points(
    figure: Any,
    axis: Any,
    names: Sequence[tuple[float, float, str, str]],
    bars: Sequence[tuple[float, float, float]],
) -> None:
    """The names of points, each where it covers least of the others and of the bars."""
    figure.canvas.draw()  # only then places in pixels are known
    renderer = figure.canvas.get_renderer()
    place = axis.transData.transform
    taken = [(_box(place((x, y)), place((x, y)), 7), 20.0) for x, y, _, _ in names]
    taken += [(_box(place((x, low)), place((x, high)), 1), 2.0) for x, low, high in bars]
    for x, y, name, colour in sorted(names, key=lambda one: -one[1]):
        weight = "bold" if name == Sum.title else "normal"
        sample = figure.text(0, 0, name, fontsize=9, fontweight=weight)
        size = sample.get_window_extent(renderer)
        sample.remove()
        boxes = [_beside(place((x, y)), size, *spot) for spot in _PLACES]
        prices = [
            number + sum(_overlap(box, other) * worth for other, worth in taken)
            if axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 and axis.bbox.y0 <= box.y0
            else float("inf")
            for number, box in enumerate(boxes)
        ]
        chosen = prices.index(min(prices))
        across, up, side = _PLACES[chosen]
        taken.append((boxes[chosen], 5.0))
        axis.annotate(
            name,
            xy=(x, y),
            xytext=(across, up),
            textcoords="offset points",
            horizontalalignment=side,
            verticalalignment="center",
            fontsize=9,
            color=colour,
            fontweight=weight,
            path_effects=_halo(),
            arrowprops=_leader(colour, side) if max(abs(across), abs(up)) > 9 else None,
        )


_PLACES = tuple(
    (side * across, up, {1: "left", -1: "right"}[side])
    for up in (0, 9, -9, 18, -18, 27, -27, 38, -38, 50, -50)
    for across in (9, 22)
    for side in (1, -1)
)
"""Where a point's name may stand, in points from it, the best first."""


def _box(low: tuple[float, float], high: tuple[float, float], more: float) -> Any:
    from matplotlib.transforms import Bbox

    return Bbox([low, high]).padded(more)


def _beside(at: Any, size: Any, across: float, up: float, side: str) -> Any:
    """What words of this size cover so many points from a place in pixels."""
    x, y = (
        float(start) + points * DPI / 72 for start, points in zip(at, (across, up), strict=True)
    )
    x -= 0 if side == "left" else size.width
    return _box((x, y - size.height / 2), (x + size.width, y + size.height / 2), 2)


def _overlap(one: Any, other: Any) -> float:
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return wide * high if wide > 0 and high > 0 else 0.0


def _halo() -> list[Any]:
    """White around words, so that lines behind them do not cross them."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


def _leader(colour: str, side: str) -> dict[str, Any]:
    """A thin line from the side of a name at which what it names is."""
    from_side = (0.0 if side == "left" else 1.0, 0.5)
    line = {"color": colour, "alpha": 0.4, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0}
    return {"arrowstyle": "-", "relpos": from_side, **line}


def _colours(ways: Sequence[str]) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(ways))]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axis: Any) -> None:
    """Lines across, and no frame."""
    axis.grid(axis="y", color=LINE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(LINE)
    axis.tick_params(which="both", colors=PALE, length=0, labelsize=9)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(color=PALE, fontsize=9)


def _percent(value: float, place: int) -> str:
    return f"{100 * value:.0f} %"


def _time(value: float, place: int) -> str:
    return f"{value:g}"


def _some_times(value: float, place: int) -> str:
    """Of the ticks between powers of ten, those of 2 and 5."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _image(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figures of every family of LoRAs whose results are there."""
    asked = plain_parser(NAME, __doc__)
    asked.add_argument("--images", type=Path, default=ROOT / "docs/images", help="for the figures")
    given = asked.parse_args(arguments)
    for family in FAMILIES:
        path = given.results / f"{file_stem(SOURCE, family)}.json"
        if not path.exists():
            command = f"python -m benchmarks.{SOURCE} --family {family}"
            print(f"{path.name} is not there yet: `{command}` writes it.")
            continue
        for name, figure in draw(read_results(path).rows).items():
            print(save_sheet(name, figure, family=family, folder=given.images))


if __name__ == "__main__":
    main()
