"""`composer expand`: a full prompt of a few words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from composer.commands import _options as options


def expand(
    words: Annotated[str, typer.Argument(help="A few words; none for any prompt.")] = "",
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA whose trigger words the prompt is to hold; repeatable."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many prompts.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first; further ones count up from it.")] = 0,
    language_model: Annotated[
        str | None, typer.Option(help="Folder or hub name.", show_default="the toybox's")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="A MixLoRA or LoRA for it.", show_default="`adapter` in its folder"),
    ] = None,
    lora_dir: options.LoraFolders = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Make a full prompt of a few words: all of them stand in it, and the LoRAs' trigger words."""
    from composer.experts import LORAS, Library
    from composer.studio import Wording

    library = Library(lora_dir or [options.LORA_FOLDER], LORAS)
    wording = Wording(language_model, adapter, device=device, card=library.find)
    for number in range(seed, seed + count):
        prompt = wording.expand(words, lora or (), seed=number)
        found = {"words": words, "seed": number, "prompt": prompt}
        typer.echo(json.dumps(found, ensure_ascii=False) if as_json else prompt)
