"""A grid of pictures as files: one picture with labels, a table, and a page that opens offline."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

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


def report(
    title: str, axes: Sequence[str], places: Sequence[Shown | None], *, across: int
) -> dict[str, bytes]:
    """The files of a report by name: grid.png, scores.csv, scores.json and index.html.

    axes: what changes, in the order of the labels. across: how many pictures stand in a row; one
        that is not there leaves its place empty.
    """
    shown = [place for place in places if place is not None]
    rows = [
        {**dict(zip(axes, one.labels, strict=True)), "picture": one.file, **one.scores}
        for one in shown
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    sheet, table = io.BytesIO(), io.StringIO()
    cells = [
        Cell(image=place.image, caption=place.caption) if place else Cell(image=None)
        for place in places
    ]
    short = textwrap.shorten(title, max(across * SIDE // LETTER, 20), placeholder=" ...")
    contact_sheet(cells, columns=across, side=SIDE, title=short).save(sheet, "PNG")
    writer = csv.DictWriter(table, names)
    writer.writeheader()
    writer.writerows(rows)
    return {
        "grid.png": sheet.getvalue(),
        "scores.csv": table.getvalue().encode(),
        "scores.json": json.dumps(rows, indent=1).encode(),
        "index.html": _page(title, names, rows, shown).encode(),
    }


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
) -> str:
    """All in one file: pictures small inside of it, and in full beside it."""
    heads = "".join(f"<th scope=col><button>{html.escape(n)}</button></th>" for n in names)
    lines: list[str] = []
    for row, one in zip(rows, shown, strict=True):
        alt = html.escape(one.caption.replace("\n", ", "), quote=True)
        picture = (
            f'<img src="{_inside(one.image)}" alt="{alt}" data-file="{html.escape(one.file)}">'
        )
        cells = [picture if n == "picture" else _words(row.get(n, "")) for n in names]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return (
        _TEMPLATE.replace("{title}", html.escape(title))
        .replace("{heads}", heads)
        .replace("{rows}", "\n".join(lines))
    )


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
td img { width: 160px; height: auto; border-radius: 8px; cursor: zoom-in; display: block; }
dialog { border: 0; padding: 0; background: none; max-width: 96vw; }
dialog::backdrop { background: #000c; }
dialog img { max-width: 96vw; max-height: 90vh; min-width: min(768px, 90vw); display: block; }
dialog a { color: #fff; display: block; padding: .5rem; }
</style></head><body>
<h1>{title}</h1>
<table><thead><tr>{heads}</tr></thead><tbody>
{rows}
</tbody></table>
<dialog><img alt=""><a></a></dialog>
<script>
const body = document.querySelector('tbody'), dialog = document.querySelector('dialog');
const heads = [...document.querySelectorAll('th')];
heads.forEach((head, place) => head.querySelector('button').onclick = () => {
  const up = head.getAttribute('aria-sort') !== 'ascending';
  heads.forEach((other) => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const words = new Intl.Collator('en', {numeric: true});
  const value = (row) => row.cells[place].textContent;
  const order = (a, b) => (value(a) - value(b)) || words.compare(value(a), value(b));
  body.append(...[...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)));
});
body.onclick = ({target}) => {
  if (target.tagName !== 'IMG') return;
  const [large, link] = dialog.children;
  large.src = target.src;
  large.alt = link.textContent = target.alt;
  link.href = target.dataset.file;
  dialog.showModal();
};
dialog.onclick = ({target}) => { if (target.tagName !== 'A') dialog.close(); };
</script></body></html>
"""
