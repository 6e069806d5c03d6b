"""What a gate training is asked to do, as the page and the disk say it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composer.errors import ComposerError

if TYPE_CHECKING:
    from composer.training.gates import GateTraining

PREVIEWS = 6  # pictures on the way, about
CHECKPOINT_EVERY = 25
MOST_LETTERS = 80

_NAME = re.compile(r"[^\W_][\w .+-]*")
_TRAINING = (
    "granularity", "input", "depth", "company", "paper", "clip", "steps", "batch_size",
    "learning_rate", "seed", "gradient_checkpointing", "precision",
)  # fmt: skip
_DROPPED = ("neutral", "reduce", "normalise", "activation", "time", "bias", "top_k", "text_encoder",
            "objective", "teacher", "keep", "rest", "familiar", "near", "balance",
            "router_balance", "start", "trajectories", "teacher_steps")  # fmt: skip
"""What trainings before said of themselves, and today's do not know."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """LoRAs, prompts and settings. The settings mean what they mean in `GateTraining`; their
    defaults are those of `composer train-gates`.

    name: of the result: `gates/<name>.safetensors` in the first LoRA folder.
    loras: by their names in the library.
    prompts: that name all of the LoRAs.
    alone: for each LoRA, prompts that name it and no other.
    dropped: settings that Composer no longer has, of a training that was begun when it had them; it
        is shown, and cannot go on.
    """

    name: str
    loras: tuple[str, ...]
    prompts: tuple[str, ...]
    alone: Mapping[str, tuple[str, ...]] = field(hash=False)

    granularity: str = "block"
    input: str = "auto"
    depth: float = 0.0
    company: str = "fitting"
    paper: bool = False
    clip: str = ""
    steps: int = 120
    batch_size: int = 8
    learning_rate: float = 1e-2
    seed: int = 0
    gradient_checkpointing: bool = False
    precision: str = "float32"
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.loras:
            raise ComposerError("No LoRA is chosen: choose one or more.")
        if twice := next((name for name in self.loras if self.loras.count(name) > 1), None):
            raise ComposerError(f"The LoRA {twice!r} is chosen twice: take it out once.")
        if not self.prompts:
            raise ComposerError(
                "There is no prompt that names all LoRAs together: write at least one, or let them "
                "be drafted again."
            )
        for name in self.loras:
            if not self.alone.get(name):
                raise ComposerError(
                    f"There is no prompt for {name!r} alone: write at least one, or give its "
                    "trigger words and let prompts be drafted again."
                )
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                raise ComposerError(
                    f"{setting.name.replace('_', ' ').capitalize()} is"
                    f" {'empty' if value is None else value}: give a number."
                )

    def config(self, output: Path, *, resume: bool = False) -> GateTraining:
        """The training's own settings, writing to `output`; brings PyTorch in.

        Raises:
            ComposerError: a setting is out of its range.
        """
        from composer.training.gates import GateTraining

        if self.dropped:
            raise ComposerError(
                f"The training {self.name!r} was begun with settings that Composer no longer has "
                f"({', '.join(self.dropped)}): forget it, and train again."
            )
        return GateTraining.from_json(
            {name: getattr(self, name) for name in _TRAINING}
            | {
                "output": output,
                "prompts": self.prompts,
                "alone": {name: self.alone[name] for name in self.loras},
                "preview_every": max(1, -(-self.steps // PREVIEWS)),
                "checkpoint_every": CHECKPOINT_EVERY,
                "resume": resume,
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes the same."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingRequest:
        """What `to_json` gave.

        Raises:
            ComposerError: something is missing, or unknown.
        """
        try:
            read = {name: value for name, value in values.items() if name not in _DROPPED}
            if dropped := [name for name in _DROPPED if name in values]:
                read |= {"dropped": dropped, "input": "auto", "company": "fitting", "clip": ""}
            for name in ("loras", "prompts", "dropped"):
                read[name] = tuple(read.get(name, ()))
            read["alone"] = {name: tuple(some) for name, some in read["alone"].items()}
            return cls(**read)
        except (KeyError, TypeError, AttributeError) as error:
            raise ComposerError(f"This training says too little of itself ({error}).") from error


def check_name(name: str) -> None:
    """Refuse a name that could not be a file's everywhere.

    Raises:
        ComposerError: with what a name may hold.
    """
    if not name.strip():
        raise ComposerError("The result has no name: give one, such as the names of its LoRAs.")
    if len(name) > MOST_LETTERS or not _NAME.fullmatch(name) or name.rstrip(" .") != name:
        raise ComposerError(
            f"{name!r} cannot be the name of the result: use letters, digits, spaces and - _ + . "
            f"(at most {MOST_LETTERS}), beginning with a letter or a digit."
        )
