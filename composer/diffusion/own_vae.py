"""A VAE of one's own in place of a model's: found, and checked against the model's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.diffusion.folder import CONVERT, check_readable, read_json, vae_files
from composer.errors import ComposerError

# What it must share with the model's VAE, and what diffusers takes where a config does not say.
_SHARED: Mapping[str, tuple[str, Any]] = {
    "latent_channels": ("number of latent channels", 4),
    "scaling_factor": ("scaling factor", 0.18215),
    "shift_factor": ("shift factor", None),
}


@dataclass(frozen=True, kw_only=True)
class OwnVae:
    """name: for people, as A1111 has it. files: its weights. config: as of `AutoencoderKL`."""

    name: str
    files: tuple[Path, ...]
    config: Mapping[str, Any]


def find_vae(given: str, of_model: Mapping[str, Any], model: str) -> OwnVae:
    """The VAE in a diffusers folder, also of a whole model, or in one safetensors file.

    A file says nothing of how it was made, so that it is read by the model's config, and refused
    where its tensors have other shapes.

    of_model: the config of the model's VAE.
    model: its name, for messages.

    Raises:
        ComposerError: there is none, or it does not fit the model.
    """
    path = Path(given).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise ComposerError(f"{path} is not a .safetensors file. {CONVERT}")
        check_readable([path])
        return OwnVae(name=path.name, files=(path,), config=of_model)
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise ComposerError(
            f"There is no VAE {given}. Give a .safetensors file, or a diffusers folder that holds "
            "config.json and diffusion_pytorch_model.safetensors."
        )
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ComposerError(
            f"The VAE {given} is of the kind {str(kind)[:60]}, and Composer takes AutoencoderKL "
            "alone. Choose another one."
        )
    for name, (words, usual) in _SHARED.items():
        ours, its = (each.get(name, usual) for each in (of_model, config))
        if not _equal(ours, its):
            raise _unfit(given, model, words, its, ours)
    ours, its = (len(each.get("block_out_channels", (64,))) for each in (of_model, config))
    if ours != its:
        raise _unfit(given, model, "side of a latent in pixels", 2 ** (its - 1), 2 ** (ours - 1))
    name = path.resolve().name
    return OwnVae(name=name, files=tuple(vae_files(folder)), config=config)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-4)
    return one == other


def _unfit(given: str, model: str, words: str, its: object, ours: object) -> ComposerError:
    return ComposerError(
        f"The VAE {given} does not fit {model}: its {words} is {its}, and the model's is {ours}. "
        "Choose a VAE that was made for this kind of model."
    )
