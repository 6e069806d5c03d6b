"""Every kind and naming of LoRA file that is read: does it add exactly what its library adds?"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.experts.adapters import KINDS, NAMINGS, Net, errors
from benchmarks.shared.options import plain_parser, publish
from benchmarks.shared.results import Row
from composer.experts import ModuleNames, read_expert

NAME = "experts.files"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a file of each, read it, and compare what it adds."""
    given = plain_parser(NAME, __doc__).parse_args(arguments)
    rows: list[Row] = []
    for table, cases in (("Kinds of adapter", KINDS), ("Namings, of a plain LoRA", NAMINGS)):
        for name, case in cases.items():
            net = Net.made()
            with tempfile.TemporaryDirectory() as folder:
                path, adapted = case.write(net, Path(folder))
                expert = read_expert(path, ModuleNames.of({"unet": net}, model="net"))
            largest = max(errors(expert, net, adapted, case.dtype).values())
            rows.append(
                {
                    "table": table,
                    "file": name,
                    "modules read": f"{len(expert.sites)} of {len(adapted)}",
                    "oracle": case.library,
                    "precision": str(case.dtype).removeprefix("torch."),
                    "largest relative error": f"{largest:.0e}",
                    "asked for": f"≤ {case.bound:.0e}",
                    "exact": "yes" if largest <= case.bound else "no",
                }
            )
            print(rows[-1], flush=True)
    notes = [
        "Each file is written by its library with random numbers for Linear layers and "
        "convolutions of 3×3 and 1×1, as far as the library has them, and read. The error is that "
        "of what a mixture adds to an output, beside what the library's own module adds, the "
        "largest of all modules. The numbers in a file are in single precision, and LyCORIS "
        "computes OFT, BOFT and T-LoRA in it. Of namings the oracle is W + up · down. What the "
        "kinds are, and which are refused by name: [lora_files.md](../lora_files.md).",
    ]
    publish(
        NAME,
        rows,
        arguments,
        title="LoRA files, kind by kind",
        notes=notes,
        settings={"LyCORIS": version("lycoris-lora"), "threads": torch.get_num_threads()},
        folder=given.results,
    )


if __name__ == "__main__":
    main()
