"""What every training is asked to do, whatever it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from composer.settings import Settings, setting

# PyTorch is not imported here: the page shows the settings before it is.
Precision = Literal["float32", "bfloat16", "auto"]


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """The settings that all trainings share; they serialise to JSON and are kept in what is made.

    Settings that cannot work raise ComposerError.
    """

    noun: ClassVar[str] = "training settings"

    output: Path = setting(help="The .safetensors file to write.")
    batch_size: int = setting(
        8, at_least=1, label="Rows at once", help="Rows at once, for each process."
    )
    accumulation: int = setting(
        1, at_least=1, label="Batches for one step", help="Batches for one step."
    )
    # at 1e-2 gates of three LoRAs ran away from every picture that the LoRAs know
    learning_rate: float = setting(
        2e-3, above=0, label="Learning rate", help="Highest learning rate."
    )
    seed: int = setting(0, at_least=0, label="Seed", help="Everything random follows from it.")
    gradient_checkpointing: bool = setting(
        False, label="Less memory, slower", help="Less memory, slower."
    )
    precision: Precision = setting(
        "float32",
        label="The model runs in",
        help="bfloat16, for the model's products alone, or auto: bfloat16 where that is faster.",
    )
    checkpoint_every: int = setting(
        0, at_least=0, help="Keep a state to resume from every so many steps."
    )
    resume: bool = setting(False, help="Go on where a stopped training was.")

    @property
    def checkpoint(self) -> Path:
        """Where the state to resume from is kept; not `.safetensors`, so no library lists it."""
        return self.output.with_suffix(".resume")
