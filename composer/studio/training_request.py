"""What a gate training is asked to do, as the page and the disk say it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.errors import ComposerError
from composer.settings import fields_of
from composer.training.gates.settings import GateTraining

PREVIEWS = 6  # pictures on the way, about
CHECKPOINT_EVERY = 25
MOST_LETTERS = 80

_NAME = re.compile(r"[^\W_][\w .+-]*")
_DROPPED = (
    "neutral", "reduce", "normalise", "activation", "time", "bias", "top_k", "text_encoder",
    "objective", "teacher", "keep", "rest", "familiar", "near", "balance", "router_balance",
    "start", "trajectories", "teacher_steps",
)  # fmt: skip
"""Settings that Composer had when earlier trainings were begun."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(GateTraining):
    """A gate training, the name of its result and its LoRAs.

    name: of the result: `gates/<name>.safetensors` in the first LoRA folder.
    loras: by their names in the library.
    dropped: settings that Composer no longer has, of a training that was begun when it had them; it
        is shown, and cannot go on.
    """

    output: Path = Path("gates.safetensors")
    name: str
    loras: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def config(self, output: Path, *, resume: bool = False) -> GateTraining:
        """The training itself, writing to `output`, with previews and states on the way.

        Raises:
            ComposerError: it was begun with settings that there are no more.
        """
        if self.dropped:
            raise ComposerError(
                f"The training {self.name!r} was begun with settings that Composer no longer has "
                f"({', '.join(self.dropped)}): forget it, and train again."
            )
        values: dict[str, Any] = {name: getattr(self, name) for name in fields_of(GateTraining)}
        values |= {
            "output": output,
            "alone": {name: self.alone[name] for name in self.loras},
            "preview_every": max(1, -(-self.steps // PREVIEWS)),
            "checkpoint_every": CHECKPOINT_EVERY,
            "resume": resume,
        }
        return GateTraining(**values)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingRequest:
        """What `to_json` gave, now or when there were other settings.

        Raises:
            ComposerError: something is missing, or unknown.
        """
        read = {name: value for name, value in values.items() if name not in _DROPPED}
        if dropped := tuple(name for name in _DROPPED if name in values):
            read |= {"dropped": dropped, "input": "auto", "company": "fitting", "clip": ""}
        return super().from_json(read)


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
