"""Options that several commands have, in the same words; their defaults stand with each command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

# Of every training.
Accumulation = Annotated[int, Option(help="Batches for one step.")]
Seed = Annotated[int, Option(help="Everything random follows from it.")]
Precision = Annotated[str, Option(help="float32 or bfloat16.")]
GradientCheckpointing = Annotated[bool, Option(help="Less memory, slower.")]
Resume = Annotated[bool, Option(help="Go on where a stopped training was.")]
Steps = Annotated[int, Option(help="Optimiser steps.")]
ChosenDevice = Annotated[str, Option(help="cpu, cuda, …; what accelerate chooses if not given.")]
PreviewEvery = Annotated[int, Option(help="A preview every so many steps.")]

# Of the model of pictures, and of LoRAs by their names.
Model = Annotated[str, Option(help="Model folder or hub name.", show_default="the toybox")]
LoraNames = Annotated[list[str], Argument(help="Names of the LoRAs.")]
LoraFolders = Annotated[list[Path] | None, Option(help="A folder of LoRAs; repeatable.")]
ComposedPrompts = Annotated[
    list[str] | None,
    Option(help="A prompt that names all of them; drafted if not given; repeatable."),
]

# Of what learns from pictures.
Title = Annotated[str, Option(help="A name for people.")]
Description = Annotated[str, Option(help="A sentence for people.")]
Alpha = Annotated[float | None, Option(help="Strength; the rank if not given.")]
PictureBatch = Annotated[int, Option(help="Pictures at once, for each process.")]
Optimizer = Annotated[str, Option(help="adamw or muon.")]
PictureRate = Annotated[float, Option(help="Highest learning rate; muon wants 5e-3 or so.")]
PictureSchedule = Annotated[str, Option(help="cosine or constant.")]
PictureWarmup = Annotated[int, Option(help="Steps until the highest learning rate.")]
MinSnr = Annotated[float, Option(help="Gamma of min-SNR weights; 0 for none.")]
CaptionDropout = Annotated[float, Option(help="Share of captions left out.")]
Flip = Annotated[bool, Option(help="Mirror half of the pictures.")]
Resolution = Annotated[int | None, Option(help="Side in pixels; the model's own if not given.")]
PriorPictures = Annotated[
    Path | None, Option(help="Folder of captioned pictures of what is to stay.")
]
PriorPrompts = Annotated[
    list[str] | None,
    Option(help="Let the model draw such pictures first; give it several times."),
]
PriorCount = Annotated[int, Option(help="How many it draws.")]
PriorShare = Annotated[float, Option(help="Their share of each batch.")]
PictureCheckpoints = Annotated[int, Option(help="Keep a state to resume from every so many steps.")]
FileType = Annotated[str, Option(help="float16 or float32.")]

# Of what learns from records.
Records = Annotated[Path, Argument(help="A .jsonl file or folder, or a datasets folder.")]
Template = Annotated[str, Option(help="auto, chat or plain.")]
Window = Annotated[int | None, Option(help="Most tokens of a row; 512.")]
StepsNotEpochs = Annotated[int | None, Option(help="Optimiser steps, not epochs.")]
Epochs = Annotated[float, Option(help="Times through the data.")]
RecordBatch = Annotated[int, Option(help="Rows at once, for each process.")]
RecordSchedule = Annotated[str, Option(help="constant, cosine or linear.")]
RecordWarmup = Annotated[int, Option(help="Steps until the highest rate.")]
HighestRate = Annotated[float, Option(help="Highest learning rate.")]
EvalData = Annotated[Path | None, Option(help="Records to measure on.")]
EvalShare = Annotated[float, Option(help="Share of the data kept for that.")]
EvalEvery = Annotated[int, Option(help="Steps between; 0 at the end alone.")]
RecordCheckpoints = Annotated[int, Option(help="Keep a state to resume from.")]
RecordDevice = Annotated[str, Option(help="cpu, cuda, …; accelerate's choice.")]

# Of gates.
Granularity = Annotated[str, Option(help="What one gate governs: network, block, layer or matrix.")]
GateBalance = Annotated[float, Option(help="Alpha of the gating balance loss.")]
Activation = Annotated[str, Option(help="softmax or free.")]
