"""Results files as Markdown for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.shared.results import Results, Row, Value

TABLE = "table"
HIDDEN = (TABLE, "family")
"""Columns that are alike in all rows of a table: its heading or the page's title says them."""


EARLIER = "**Measured on the toybox that shipped before, of 64×64 pixels; not yet made again.**"


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as one Markdown table; columns in order of their first appearance.

    A column `x` with `x low` and `x high` becomes one cell with its interval. A fraction is shown
    as a percentage when it has such an interval; a column whose name ends in "(s)", "(dB)" or
    "(×)" is shown in that unit.
    """
    columns = [
        name
        for name in dict.fromkeys(key for row in rows for key in row)
        if name not in HIDDEN and not _is_end(name, rows)
    ]
    numbers = {name: _is_number(name, rows) for name in columns}
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|" + "|".join(" ---: " if numbers[name] else " --- " for name in columns) + "|")
    lines += ["| " + " | ".join(cell(row, name) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def results_section(results: Results, *, level: int = 2, docs: str = "") -> str:
    """One benchmark as a section of Markdown with a heading of this level: figures first, then how
    they came about. `docs` is the way from the page to docs/, such as "../"."""
    tables = markdown_tables(results.rows, level + 1)
    parts = [f"{'#' * level} {results.title}", tables, *results.notes]
    return "\n\n".join([*parts, _origin(results)]).replace("](images/", f"]({docs}images/")


def markdown_tables(rows: Sequence[Row], level: int = 3) -> str:
    """Rows as one table for each name in their column "table", under a heading of that name."""
    parts: list[str] = []
    for name in dict.fromkeys(str(row.get(TABLE, "")) for row in rows):
        parts += [f"{'#' * level} {name}"] if name else []
        parts.append(markdown_table([row for row in rows if str(row.get(TABLE, "")) == name]))
    return "\n\n".join(parts)


def _origin(results: Results) -> str:
    machine = results.machine
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ", no GPU"
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    settings = ", ".join(f"{name} {plain(value)}" for name, value in results.settings.items())
    lines = [
        EARLIER if results.earlier_model else "",
        f"Made by `{results.command}` on {results.date} at commit {results.commit}.",
        f"Settings: {settings}." if settings else "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['ram_gb']} GB{gpu}.",
        f"Versions: {versions}.",
    ]
    return "  \n".join(line for line in lines if line)


def _is_end(name: str, rows: Sequence[Row]) -> bool:
    base, _, end = name.rpartition(" ")
    return end in ("low", "high") and any(base in row for row in rows)


def _is_number(name: str, rows: Sequence[Row]) -> bool:
    values = [row[name] for row in rows if row.get(name) is not None]
    return all(isinstance(value, int | float) for value in values)


def cell(row: Mapping[str, Value], name: str) -> str:
    """A row's value in this column, with its interval if it has one."""
    value = row.get(name)
    if value is None:
        return ""
    low, high = row.get(f"{name} low"), row.get(f"{name} high")
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return plain(value)
    if "(" in name:  # its unit is in its name
        dash = " to " if low < 0 else "–"
        return f"{plain(value)} ({plain(low)}{dash}{plain(high)})"
    return f"{float(value) * 100:.1f} % ({low * 100:.0f}–{high * 100:.0f})"


def plain(value: Value) -> str:
    """A value as a reader sees it: three digits of a fraction, "yes" or "no", "" for none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return "" if value is None else str(value).replace("|", "\\|")
