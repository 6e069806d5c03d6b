"""Options that several commands have, in the same words, and what they mean if not given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

ROOT = Path(__file__).parents[2]
TOYBOX = str(ROOT / "assets" / "toybox")
LORA_FOLDER = ROOT / "loras"
CHECKPOINT_EVERY = 100  # steps of a training; by itself, a training keeps no state

Model = Annotated[
    str, Option(help="A folder, a checkpoint file or a hub name.", show_default="the toybox")
]
Vae = Annotated[
    str | None,
    Option(help="A VAE in place of the model's: a folder or a file.", show_default="the model's"),
]
LowVram = Annotated[
    bool,
    Option("--lowvram", help="Less memory on the device, slower: one network there at a time."),
]
LanguageModelName = Annotated[str, Option("--model", help="Model folder or hub name.")]
Bits = Annotated[int, Option(help="4 or 8: the base by bitsandbytes.")]
LoraNames = Annotated[list[str], Argument(help="Names of the LoRAs.")]
LoraFolders = Annotated[
    list[Path] | None,
    Option(help="A folder of LoRAs; repeatable.", show_default="the toybox's"),
]
ComposedPrompts = Annotated[
    list[str] | None,
    Option(help="A prompt that names all of them; drafted if not given; repeatable."),
]
ChosenDevice = Annotated[str, Option(help="cpu, cuda, …; what accelerate chooses if not given.")]
Device = Annotated[str, Option(help="auto, cpu, cuda or mps.")]
Partial = Annotated[
    bool, Option("--partial", help="Use LoRAs of which much does nothing for this model.")
]
AsJson = Annotated[bool, Option("--json", help="For programs.")]
