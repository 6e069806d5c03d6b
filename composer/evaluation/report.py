"""A grid of pictures as files: one picture with labels, a table, and a page that opens offline."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from composer.evaluation.intervals import Paired
from composer.evaluation.sheets import Cell, contact_sheet
from composer.files import write_atomically

SIDE = 256  # of a picture on the sheet, in pixels
LETTER = 10  # width of a letter of the title, about
LARGE = 768


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One picture of a grid.

    labels: by axis. caption: the same in words, line by line. file: below the report's folder.
    """

    labels: tuple[str, ...]
    caption: str
    file: str
    image: Image.Image
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A score of a way, the mean over its pictures; paired with those of the weighted sum, if it
    is compared with them."""

    way: str
    score: str
    pictures: int
    mean: float
    paired: Paired | None = None

    @property
    def row(self) -> dict[str, str | float | None]:
        """As columns of a table."""
        one = self.paired
        ends = one.interval if one else None
        return {
            "way": self.way,
            "score": self.score,
            "pictures": self.pictures,
            "mean": self.mean,
            "pairs": one and one.pairs,
            "independent pairs": one and one.clusters,
            "wins": one and one.wins,
            "difference": one and one.difference,
            "difference low": ends and ends.low,
            "difference high": ends and ends.high,
            "note": TOO_FEW if one and not ends else None,
        }

    def lines(self, whole: float = 0) -> tuple[str, ...]:
        """For people: the mean, then wins, and the difference with its interval.

        whole: what is 100 %; 0 says the numbers themselves.
        """
        mean = f"{100 * self.mean / whole:.0f} %" if whole else _words(self.mean)
        if self.paired is None:
            return (mean,)

        def away(value: float) -> str:
            return f"{round(100 * value / whole):+d}" if whole else f"{value:+.3g}"

        one, ends = self.paired, self.paired.interval
        beside = f"{away(ends.low)} to {away(ends.high)}" if ends else TOO_FEW
        return (
            mean,
            f"wins {100 * one.wins:.0f} % of {one.pairs}",
            f"{away(one.difference)} ({beside})",
        )


TOO_FEW = "too few pairs"
"""In place of an interval."""


def report(
    title: str,
    axes: Sequence[str],
    places: Sequence[Shown | None],
    *,
    across: int,
    standings: Sequence[Standing] = (),
    notes: Sequence[str] = (),
) -> dict[str, bytes]:
    """The files of a report by name: grid.png, scores.csv, ways.csv, scores.json and index.html.

    axes: what changes, in the order of the labels. across: how many pictures stand in a row; one
        that is not there leaves its place empty.
    standings: each score of each way. notes: sentences on the scores.
    """
    shown = [place for place in places if place is not None]
    rows = [
        {**dict(zip(axes, one.labels, strict=True)), "picture": one.file, **one.scores}
        for one in shown
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    sheet = io.BytesIO()
    cells = [
        Cell(image=place.image, caption=place.caption) if place else Cell(image=None)
        for place in places
    ]
    short = textwrap.shorten(title, max(across * SIDE // LETTER, 20), placeholder=" ...")
    contact_sheet(cells, columns=across, side=SIDE, title=short).save(sheet, "PNG")
    ways = [one.row for one in standings]
    return {
        "grid.png": sheet.getvalue(),
        "scores.csv": _csv(names, rows),
        **({"ways.csv": _csv(list(ways[0]), ways)} if ways else {}),
        "scores.json": json.dumps({"pictures": rows, "ways": ways}, indent=1).encode(),
        "index.html": _page(title, names, rows, shown, standings, notes).encode(),
    }


def _csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    table = io.StringIO()
    writer = csv.DictWriter(table, names)
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


def write_report(folder: Path, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Write a report's files into a folder, each whole or not at all."""
    for name, data in files.items():
        write_atomically(folder / name, data)
    return tuple(folder / name for name in files)


def _page(
    title: str,
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    shown: Sequence[Shown],
    standings: Sequence[Standing],
    notes: Sequence[str],
) -> str:
    """All in one file: pictures small inside of it, and in full beside it."""
    lines: list[str] = []
    for row, one in zip(rows, shown, strict=True):
        alt = html.escape(one.caption.replace("\n", ", "), quote=True)
        picture = (
            f'<img src="{_inside(one.image)}" alt="{alt}" data-file="{html.escape(one.file)}">'
        )
        cells = [picture if n == "picture" else _words(row.get(n, "")) for n in names]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    parts = {
        "title": html.escape(title),
        "ways": _ways(standings),
        "notes": "".join(f"<p>{html.escape(note)}</p>" for note in notes),
        "pictures": _table(names, lines),
    }
    # all at once, so that what a part says is not filled in again
    return re.sub(r"{(title|ways|notes|pictures)}", lambda found: parts[found[1]], _TEMPLATE)


def _table(heads: Iterable[str], lines: Iterable[str]) -> str:
    cells = "".join(f"<th scope=col><button>{html.escape(n)}</button></th>" for n in heads)
    rows = "\n".join(lines)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>\n{rows}\n</tbody></table>"


def by_way(standings: Sequence[Standing]) -> tuple[list[str], dict[str, list[Standing | None]]]:
    """The names of all scores, and of each way one or None for each of them."""
    ways: dict[str, dict[str, Standing]] = {}
    for one in standings:
        ways.setdefault(one.way, {})[one.score] = one
    places: dict[str, int] = {}  # a way may lack what comes first
    for of_way in ways.values():
        places |= {score: max(n, places.get(score, 0)) for n, score in enumerate(of_way)}
    scores = sorted(places, key=lambda score: places[score])
    return scores, {way: [of.get(score) for score in scores] for way, of in ways.items()}


def _ways(standings: Sequence[Standing]) -> str:
    """A table with a way in each row; nothing without any."""
    if not standings:
        return ""
    scores, ways = by_way(standings)
    lines: list[str] = []
    for way, row in ways.items():
        cells = "".join(
            f"<td data-value={one.mean!r}>{'<br>'.join(map(html.escape, one.lines()))}</td>"
            if one
            else "<td></td>"
            for one in row
        )
        lines.append(f"<tr><td>{html.escape(way)}</td>{cells}</tr>")
    return _table(["way", *scores], lines)


def _words(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else html.escape(str(value))


def _inside(image: Image.Image) -> str:
    small = image.convert("RGB")
    if max(small.size) < SIDE:
        small = small.resize((SIDE, round(SIDE * small.height / small.width)))
    small.thumbnail((LARGE, LARGE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; padding: 0 1rem; max-width: 90rem; }
h1 { font-size: 1.3rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .5rem .75rem; border-bottom: 1px solid #8883; }
td { vertical-align: top; }
th { position: sticky; top: 0; background: Canvas; z-index: 1; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid; outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
td { font-variant-numeric: tabular-nums; }
p { margin: .3rem 0; opacity: .75; max-width: 60rem; }
table + p { margin-top: 1rem; }
p + table { margin-top: 2rem; }
td img { width: 160px; height: auto; border-radius: 8px; cursor: zoom-in; display: block; }
dialog { border: 0; padding: 0; background: none; max-width: 96vw; }
dialog::backdrop { background: #000c; }
dialog img { max-width: 96vw; max-height: 90vh; min-width: min(768px, 90vw); display: block; }
dialog a { color: #fff; display: block; padding: .5rem; }
</style></head><body>
<h1>{title}</h1>
{ways}
{notes}
{pictures}
<dialog><img alt=""><a></a></dialog>
<script>
const dialog = document.querySelector('dialog');
document.querySelectorAll('table').forEach((table) => {
  const body = table.tBodies[0], heads = [...table.querySelectorAll('th')];
  heads.forEach((head, place) => head.querySelector('button').onclick = () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    heads.forEach((other) => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const words = new Intl.Collator('en', {numeric: true});
    const value = ({cells}) => cells[place].dataset.value ?? cells[place].textContent;
    const order = (a, b) => (value(a) - value(b)) || words.compare(value(a), value(b));
    body.append(...[...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)));
  });
});
document.body.onclick = ({target}) => {
  if (!target.matches('td img')) return;
  const [large, link] = dialog.children;
  large.src = target.src;
  large.alt = link.textContent = target.alt;
  link.href = target.dataset.file;
  dialog.showModal();
};
dialog.onclick = ({target}) => { if (target.tagName !== 'A') dialog.close(); };
</script></body></html>
"""
