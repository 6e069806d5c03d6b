"""The losses of gate trainings as they went: kept beside the gate files, and drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Curve = list[tuple[int, float]]


def curve_path(file: Path) -> Path:
    """Where the losses of a gate file's training are kept."""
    return file.with_suffix(".curve.json")


def curves_of(files: Mapping[str, Path]) -> dict[str, Curve]:
    """The curves of these files, by name; those that were kept."""
    there = {name: curve_path(path) for name, path in files.items()}
    return {name: json.loads(path.read_text()) for name, path in there.items() if path.exists()}


def plot(tables: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Image.Image:
    """One panel for each table, a line for each variant, on a logarithmic scale; a loss that is
    negative somewhere, as CLIP's is, is left out."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(8.2 * max(len(tables), 1), 4.2), dpi=130, layout="constrained")
    axes = figure.subplots(1, max(len(tables), 1), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, tables.items(), strict=False):
        drawn = {n: c for n, c in curves.items() if all(loss > 0 for _, loss in c)}
        for number, (name, curve) in enumerate(drawn.items()):
            steps, losses = zip(*curve, strict=True)
            dashes = "-" if number < 10 else "--"  # there are ten colours
            axis.plot(steps, losses, dashes, label=name, linewidth=1.4)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.set_yscale("log")
        axis.grid(alpha=0.25, which="both")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
