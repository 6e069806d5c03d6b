"""One stage of the recipe as a process: `python -m toybox.stage NAME --work=...`."""

from __future__ import annotations

import argparse
from pathlib import Path

from toybox.recipe import STAGES, Build, do_stage

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=STAGES)
    for folder in ("work", "out", "loras"):
        parser.add_argument(f"--{folder}", type=Path, required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=float, default=1.0)
    for number in ("processes", "batch", "seed"):
        parser.add_argument(f"--{number}", type=int, required=True)
    given = vars(parser.parse_args())
    do_stage(Build(**{k: v for k, v in given.items() if k != "name"}), given["name"])
