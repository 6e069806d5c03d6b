"""The paper's gate in its variants, taught alike: granularity, what it looks at, balance loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.gates.ablations import Changes, Tables, run

NAME = "gates.paper"
GATE = {"reduce": "mean", "activation": "softmax", "normalise": "l2", "time": False}
GRANULARITIES = ("matrix", "layer", "block", "network")
INPUTS = {"hidden": "hidden state", "experts": "experts' outputs"}


def _paper(granularity: str, seen: str, balance: float = 0.5) -> Changes:
    """The paper's gate, taught as all others are here: judged by the LoRAs, not by CLIP."""
    gate = {**GATE, "input": seen}
    own: dict[str, Any] = {
        "start": "solved",
        "near": 0.0,
    }  # weights that sum to 1 can be no plain sum
    own |= {"familiar": 0.5, "company": "nobody"}
    return {"granularity": granularity, "gate": gate, "balance": balance, **own}


TABLES: Tables = {
    "Granularity and what the gate looks at": {
        f"{granularity}, {words}": _paper(granularity, seen)
        for granularity in GRANULARITIES
        for seen, words in INPUTS.items()
        # one gate for all is asked before any expert has spoken
        if (granularity, seen) != ("network", "experts")
    },
    "With and without the balance loss": {
        f"{granularity}, balance {balance:g}": _paper(granularity, "hidden", balance)
        for granularity in ("block", "network")
        for balance in (0.5, 0.0)
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every variant on the same prompts and seeds, and judge their pictures."""
    run(NAME, __doc__ or "", "The paper's gate in its variants", TABLES, arguments)


if __name__ == "__main__":
    main()
