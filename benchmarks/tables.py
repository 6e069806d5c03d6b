"""Write docs/results.md, a page for each results file, and docs/methods.md from the recipes:
`python -m benchmarks.tables`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.questions import QUESTIONS, WHICH, Answer, Question
from benchmarks.shared.markdown import EARLIER, markdown_table, results_section
from benchmarks.shared.methods import methods_page
from benchmarks.shared.results import FOLDER, ROOT, TAUGHT, Results, read_results

DOCS = ROOT / "docs"
TITLE = "results.md"
METHODS = "methods.md"
ROOMS = {
    "models": "Models of their real size",
    "toybox": "The model, its LoRAs and their sums",
    "compos": "Sets of LoRAs",
    "gates": "Gates",
    "mixlora": "MixLoRA",
    "language": "Language models",
    "experts": "LoRA files",
}
"""Headings of the list of benchmarks, by room."""

HEAD = """# Results

Questions, each with what was measured. Every figure comes from a results file that a module of
`benchmarks/` wrote into `benchmarks/results/`; `python -m benchmarks.tables` writes this page and
those it links to, and nothing on them is typed by hand. Each of those pages says how its figures
came about: the command, the commit, the settings, the machine and the versions.

Percentages have their 95 % interval (Wilson) in brackets, means theirs (bootstrap). Pictures are
judged by the oracle, a classifier that no training of the model, of a LoRA or of a gate uses.
Prompts and seeds are unseen by any training."""


def pages(folder: Path = FOLDER) -> dict[str, str]:
    """The text of every page by its path below docs/."""
    found = {r.stem: r for r in map(read_results, sorted(folder.glob("*.json")))}
    written = {page_of(results): _page(results) for results in found.values()}
    return {TITLE: _title_page(found), METHODS: methods_page(_advice(found)), **written}


def page_of(results: Results) -> str:
    """Where the page of these results is, below docs/."""
    return f"results/{results.stem}.md"


def _page(results: Results) -> str:
    text = results_section(results, level=1, docs="../")
    return f"{text}\n\n[All results](../{TITLE})\n"


def _title_page(found: Mapping[str, Results]) -> str:
    parts = [HEAD]
    for question in QUESTIONS:
        answer = _answer(question, found)
        if answer is None:
            continue
        links = ", ".join(_link(found[stem]) for stem in question.sources) + "."
        if any(found[stem].earlier_model for stem in question.sources):
            links += f" {EARLIER}"
        parts += [f"## {question.title}", *answer.words, markdown_table(answer.rows)]
        parts.append(f"In full: {links}")
    parts.append("## All benchmarks")
    for room, title in ROOMS.items():
        listed = [r for r in found.values() if r.name.startswith(f"{room}.")]
        lines = [f"- {_link(r)}: `{_command(r)}`" for r in listed]
        parts += [f"### {title}", "\n".join(lines)] if lines else []
    return "\n\n".join(parts) + "\n"


def _answer(question: Question, found: Mapping[str, Results]) -> Answer | None:
    """None where the results of a benchmark are missing."""
    if not set(question.sources) <= found.keys():
        return None
    return question.answer(*(found[stem] for stem in question.sources))


def _advice(found: Mapping[str, Results]) -> list[str]:
    """Which way to use: the words of its question, and where the figures are."""
    answer = _answer(WHICH, found)
    if answer is None:
        return []
    anchor = re.sub(r"[^a-z ]", "", WHICH.title.lower()).replace(" ", "-")
    return [*answer.words, f"The figures: [{WHICH.title}]({TITLE}#{anchor})"]


def _link(results: Results) -> str:
    return f"[{results.title}]({page_of(results)})"


def _command(results: Results) -> str:
    family = "" if results.family == TAUGHT else f" --family {results.family}"
    return f"python -m benchmarks.{results.name}{family}"


def main() -> None:
    """Write the pages, and delete those whose results are gone."""
    written = pages()
    for path in (DOCS / "results").glob("*.md"):
        if f"results/{path.name}" not in written:
            path.unlink()
    for name, text in written.items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"docs/{TITLE} and {len(written) - 1} other pages are written.")


if __name__ == "__main__":
    main()
