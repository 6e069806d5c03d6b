"""The paper's gate as published, in its variants: granularity, and what it looks at."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gates.ablations import Tables, run

NAME = "gates.paper"
GRANULARITIES = ("matrix", "layer", "block", "network")
INPUTS = {"hidden": "hidden state", "experts": "experts' outputs"}
TABLES: Tables = {
    "Granularity and what the gate looks at": {
        f"{granularity}, {words}": {"paper": True, "granularity": granularity, "input": seen}
        for granularity in GRANULARITIES
        for seen, words in INPUTS.items()
        # one gate for all is asked before any expert has run
        if (granularity, seen) != ("network", "experts")
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every variant on the same prompts and seeds, and judge their pictures."""
    run(NAME, __doc__ or "", "The paper's gate in its variants", TABLES, arguments)


if __name__ == "__main__":
    main()
