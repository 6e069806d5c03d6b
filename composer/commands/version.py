"""`composer version`: what runs here, for a report of a fault."""

from __future__ import annotations

import platform
from importlib import metadata

import typer

import composer

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "gradio")


def version() -> None:
    """Say which Composer, Python and libraries these are."""
    typer.echo(f"composer {composer.__version__}")
    typer.echo(f"python {platform.python_version()} on {platform.platform()}")
    for library in LIBRARIES:
        typer.echo(f"{library} {metadata.version(library)}")
