"""Load a Stable Diffusion, sample it as a generator of steps, and keep how a picture was made.

The names below are imported when first used: requests, prompts and records need no torch, and a
page that only shows them starts without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from composer.diffusion.load import load_model as load_model
    from composer.diffusion.model import Model as Model
    from composer.diffusion.png import read_png as read_png, write_png as write_png
    from composer.diffusion.prompt import (
        LoraTag as LoraTag,
        ParsedPrompt as ParsedPrompt,
        parse_prompt as parse_prompt,
    )
    from composer.diffusion.record import LoraRecord as LoraRecord, PictureRecord as PictureRecord
    from composer.diffusion.request import Request as Request
    from composer.diffusion.sample import Picture as Picture, Step as Step, generate as generate
    from composer.diffusion.samplers import SAMPLERS as SAMPLERS, Sampler as Sampler

_ROOMS = {
    "load": ("load_model",),
    "model": ("Model",),
    "png": ("read_png", "write_png"),
    "prompt": ("LoraTag", "ParsedPrompt", "parse_prompt"),
    "record": ("LoraRecord", "PictureRecord"),
    "request": ("Request",),
    "sample": ("Picture", "Step", "generate"),
    "samplers": ("SAMPLERS", "Sampler"),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
