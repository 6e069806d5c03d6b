"""`composer convert`: a MixLoRA adapter that others saved as a pickle becomes safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    adapter: Annotated[
        Path, typer.Argument(help="The folder with adapter_config.json and adapter_model.bin.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to write to.", show_default="the same"),
    ] = None,
) -> None:
    """Write a MixLoRA adapter's .bin as .safetensors, which Composer loads; old names are renewed.

    No other command and no page ever opens a .bin. This one lets PyTorch build tensors from it and
    nothing else.
    """
    from composer.language.convert import convert_adapter

    typer.echo(str(convert_adapter(adapter, output or adapter)))
