"""What an export of gates is asked to do, and what it tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch

from composer.errors import ComposerError
from composer.experts.write import Naming
from composer.fusions.export import lbw_string

ExportStage = Literal["sample", "measure", "saved"]

_AT_LEAST: dict[str, float] = {"bins": 1, "pictures": 1, "steps": 1, "cfg_scale": 1, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class GateExport:
    """Every setting of one export.

    output: the `.safetensors` file to write; with several bins, `<name>-1of3.safetensors` and so
        on beside it.
    gates: what the gate file is called, for the metadata.
    naming: "kohya" or "diffusers".
    bins: how many parts the steps are divided into, each with a LoRA of its own.
    prompts: what is sampled; empty takes the prompts the gates were trained on.
    pictures: how many are sampled, each with the next prompt and the next seed.
    lbw: whether to measure what the strings of block weights lose too.
    dtype: of the written numbers.
    """

    output: Path
    gates: str = ""
    naming: Naming = "kohya"
    bins: int = 1
    prompts: tuple[str, ...] = ()
    pictures: int = 24
    steps: int = 12
    cfg_scale: float = 3.0
    seed: int = 0
    lbw: bool = False
    dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if self.output.suffix != ".safetensors":
            raise ComposerError(
                f"output {self.output.name!r} is no LoRA file: give a name that ends in"
                " .safetensors."
            )
        if self.naming not in get_args(Naming):
            raise ComposerError(
                f"naming {self.naming!r} is unknown: choose one of {', '.join(get_args(Naming))}."
            )
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ComposerError(f"{name} is {value}: give {least:g} or more.")
        if self.bins > self.steps:
            raise ComposerError(
                f"{self.bins} bins of {self.steps} steps: some would be empty. Give"
                f" {self.steps} bins or fewer, or more steps."
            )
        if not all(prompt.strip() for prompt in self.prompts):
            raise ComposerError("One of the prompts is empty: leave it out.")

    @property
    def spans(self) -> tuple[range, ...]:
        """The steps of each bin, counted from 0."""
        ends = [part * self.steps // self.bins for part in range(self.bins + 1)]
        return tuple(range(ends[part], ends[part + 1]) for part in range(self.bins))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file of each bin."""
        if self.bins == 1:
            return (self.output,)
        stem, suffix = self.output.stem, self.output.suffix
        return tuple(
            self.output.with_name(f"{stem}-{part}of{self.bins}{suffix}")
            for part in range(1, self.bins + 1)
        )


@dataclass(frozen=True, kw_only=True)
class ExportedLora:
    """One written file.

    first, last: the steps it is for, counted from 1, of all `steps`.
    timesteps: of these two, as the noise schedule counts: from much noise to little.
    loss: over these steps: the squared distance from the gates' prediction, as a part of the bare
        model's; 0 is nothing lost, 1 as far as the bare model.
    blocks: for each expert, its 17 block weights.
    """

    path: Path
    first: int
    last: int
    steps: int
    timesteps: tuple[int, int]
    loss: float
    blocks: Mapping[str, tuple[float, ...]]

    @property
    def shares(self) -> tuple[float, float]:
        """From which part of the sampling to which it is meant, 0 to 1."""
        return (self.first - 1) / self.steps, self.last / self.steps

    @property
    def lbw(self) -> tuple[str, ...]:
        """What a prompt would say for each expert's own LoRA in its place."""
        return tuple(lbw_string(name, numbers) for name, numbers in self.blocks.items())


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export came to.

    loss: over all steps.
    lbw_loss: of the LoRAs side by side with their strings of block weights in place of the file;
        None if it was not asked for, or some sites are unplaced.
    unplaced: sites that none of the block weights speaks of.
    """

    files: tuple[ExportedLora, ...]
    loss: float
    lbw_loss: float | None = None
    unplaced: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class ExportProgress:
    """One report. `step` of `total` counts within the stage: steps of the gates' samplings, then
    predictions that are compared. `exported` is in the last report, of stage "saved", alone."""

    stage: ExportStage
    step: int
    total: int
    seconds_left: float | None = None
    exported: Exported | None = None
