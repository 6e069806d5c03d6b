"""Write docs/results.md from all results files: `python -m benchmarks.tables`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.shared.markdown import results_section
from benchmarks.shared.results import FOLDER, ROOT, read_results

PAGE = ROOT / "docs" / "results.md"
ORDER = ("toybox_model", "toybox_lora_alone", "toybox_merging", "toybox_speed")
"""Sections in this order; others follow by name."""

HEAD = """# Results

Every figure here was measured by a module of `benchmarks/` and is written from the files in
`benchmarks/results/` by `python -m benchmarks.tables`; nothing is typed by hand. Percentages have
their 95 % interval (Wilson) in brackets, means theirs (bootstrap). The pictures were judged by the
oracle, a classifier that no training of the model or of a LoRA ever uses."""


def page(folder: Path = FOLDER) -> str:
    """The whole page."""
    found = {path.stem: path for path in sorted(folder.glob("*.json"))}
    names = [name for name in ORDER if name in found]
    names += [name for name in found if name not in ORDER]
    sections = [results_section(read_results(found[name])) for name in names]
    return "\n\n".join([HEAD, *sections]) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"docs/{PAGE.name} is written.")


if __name__ == "__main__":
    main()
