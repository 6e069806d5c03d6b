"""What a gate training and an export of gates are asked to do, and how a training reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from composer.errors import ComposerError
from composer.settings import Settings, setting
from composer.training.picture_settings import FileType
from composer.training.progress import Progress
from composer.training.settings import Training

# PyTorch is not imported here: the page shows the settings before it is.
Granularity = Literal["network", "block", "layer", "matrix"]
Input = Literal["auto", "hidden", "placed", "experts"]
Company = Literal["fitting", "nobody"]
Naming = Literal["kohya", "diffusers"]


@dataclass(frozen=True, kw_only=True)
class GateTraining(Training):
    """Every setting of one gate training; kept in the file it makes.

    output: the `.safetensors` file to write.
    prompts: that name every expert; what the gates are for.
    alone: for each expert by name, prompts that name it and no other.
    steps: of the optimiser; 0 leaves the gates at their start.
    preview_prompt: what the pictures on the way are of; empty is the first of the prompts.
    """

    prompts: tuple[str, ...] = ()
    alone: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    granularity: Granularity = setting(
        "block", label="One gate for each", help="What one gate governs; finer ones cost more."
    )
    input: Input = setting(
        "auto",
        label="Gates look at",
        help="The unit's input (hidden); that, with weights that count where each LoRA's words act "
        "(placed); what each LoRA would change (experts, as published alone). auto: placed where "
        "several LoRAs draw figures, else hidden.",
    )
    depth: float = setting(
        0.0,
        at_least=0,
        below=1,
        label="From this depth on",
        help="Gates from this depth of the U-Net on; 0 is all of it.",
    )
    company: Company = setting(
        "fitting",
        label="Each LoRA judges beside",
        help="Beside which others each LoRA judges: fitting (all, but a figure beside no other "
        "figure), or nobody.",
    )
    paper: bool = setting(
        False, label="As published", help="Gates and training as published, judged by CLIP."
    )
    clip: str = setting(
        "",
        label="CLIP",
        help="As published alone: a CLIP by folder or hub name, if not the model's own.",
    )

    steps: int = setting(120, at_least=0, label="Steps", help="Steps of the optimiser.")
    preview_every: int = setting(0, at_least=0, help="A preview every so many steps.")
    preview_prompt: str = setting("", help="What the previews show.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix != ".safetensors":
            raise ComposerError(
                f"output {self.output.name!r} is no gate file: give a name that ends in"
                " .safetensors."
            )
        self._check_together()

    def _check_together(self) -> None:
        """Refuse settings that would be ignored beside others."""
        if self.paper and self.company != "fitting":
            raise ComposerError(
                f"company {self.company!r} is for LoRAs as judges, and with paper CLIP judges: "
                "leave one of them out."
            )
        if self.paper and self.input == "placed":
            raise ComposerError(
                "The paper's gates know no places: with paper choose the input hidden or experts."
            )
        if not self.paper and self.input == "experts":
            raise ComposerError(
                "The input experts is the paper's: give paper too, or choose the input hidden or "
                "placed."
            )
        if self.clip and not self.paper:
            raise ComposerError(
                f"clip {self.clip!r} is asked with paper alone: give paper too, or leave it out."
            )
        if self.preview_prompt and not self.preview_every:
            raise ComposerError(
                "There is a preview_prompt, and no preview is asked for: give preview_every too, "
                "or leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class GateProgress(Progress):
    """One report.

    losses: smoothed: "loss" for the whole, and by expert's name what it misses of itself; for the
        paper's objective "CLIP".
    entropy: of the gates' shares, 1 even to 0 one expert everywhere.
    """

    losses: Mapping[str, float] = field(default_factory=dict[str, float])
    entropy: float | None = None


@dataclass(frozen=True, kw_only=True)
class GateExport(Settings):
    """Every setting of one export.

    output: the `.safetensors` file to write; with several bins, `<name>-1of3.safetensors` and so
        on beside it.
    gates: what the gate file is called, for the metadata.
    prompts: what is sampled; empty takes the prompts the gates were trained on.
    pictures: how many are sampled, each with the next prompt and the next seed.
    file_type: of the written numbers.
    """

    noun: ClassVar[str] = "export settings"

    output: Path
    gates: str = ""
    naming: Naming = setting("kohya", help="Whose names the file's tensors have.")
    bins: int = setting(
        1, at_least=1, help="Divide the steps into so many parts, each with its own file."
    )
    prompts: tuple[str, ...] = ()
    pictures: int = setting(24, at_least=1, help="How many pictures the weights are averaged over.")
    steps: int = setting(12, at_least=1, help="Denoising steps of each.")
    cfg_scale: float = setting(3.0, at_least=1, option="cfg", help="CFG scale of each.")
    seed: int = setting(0, at_least=0, help="Of the first picture; the others count up.")
    lbw: bool = setting(
        False, help="Print each LoRA's string of block weights too, and what is lost with it."
    )
    file_type: FileType = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix != ".safetensors":
            raise ComposerError(
                f"output {self.output.name!r} is no LoRA file: give a name that ends in"
                " .safetensors."
            )
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
