"""`composer convert`: what others saved as a pickle becomes safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A MixLoRA adapter's folder, with adapter_config.json and adapter_model.bin; or "
            "the .pt or .bin file of an embedding."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write.", show_default="beside it"),
    ] = None,
) -> None:
    """Write a pickle's tensors as .safetensors, which Composer loads; old names are renewed.

    No other command and no page ever opens a pickle. This one lets PyTorch build tensors from it
    and nothing else.
    """
    if source.is_file():
        from composer.experts.embedding import convert_embedding

        written = convert_embedding(source, output or source.with_suffix(".safetensors"))
    else:
        from composer.language.convert import convert_adapter

        written = convert_adapter(source, output or source)
    typer.echo(str(written))
