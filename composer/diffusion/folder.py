"""Is this folder a model we can load? Found out from names and headers, before anything is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from composer.errors import ComposerError
from composer.experts.magic import REFUSED_SUFFIXES
from composer.families import FAMILIES, Family, find_family
from composer.outside import parse_json

NONE = [None, None]
_DIFFUSERS = "diffusion_pytorch_model"
_NAMED = re.compile(r"(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
"""What follows the stem of a weight file's name: its variant, and which shard it is."""
CONVERT = (
    "Only .safetensors are opened here, because the other formats can run code. Download the "
    "safetensors version, or convert the model with one you trust: "
    "pipeline.save_pretrained(folder, safe_serialization=True)."
)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``."""
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ComposerError(f"{path} cannot be read: {error}. Download it again.") from error
    if not isinstance(values, dict):
        raise ComposerError(f"{path} is not a JSON object. Download it again.")
    return cast("dict[str, Any]", values)


def check_pipeline(folder: Path) -> Family:
    """The family of a folder, by its components and the width that its U-Net reads.

    Which of diffusers' pipelines saved it does not matter: text to image, image to image and LCM
    save the same components.

    Raises:
        ComposerError: ``model_index.json`` is missing, or the folder is of another kind of model.
    """
    if not (folder / "model_index.json").is_file():
        raise ComposerError(
            f"{folder} is not a diffusers model: model_index.json is missing. Give the folder "
            "that holds model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/."
        )
    index = read_json(folder / "model_index.json")
    # one that is left out is there as [null, null]
    present = {name for name, value in index.items() if isinstance(value, list) and value != NONE}
    parts = present & {part for family in FAMILIES for part in family.parts}
    if not any(parts == set(family.parts) for family in FAMILIES):
        found = ", ".join(sorted(present)) or "no parts"
        raise ComposerError(
            f"{folder} is a {str(index.get('_class_name'))[:60]} of {found[:200]}; Composer "
            f"composes with {', '.join(family.name for family in FAMILIES)} and cannot load it. "
            "Choose another model."
        )
    config = folder / "unet" / "config.json"
    width = read_json(config).get("cross_attention_dim") if config.is_file() else 0
    return find_family(width if isinstance(width, int) else 0, parts)


def check_configs(folder: Path, family: Family) -> None:
    """Refuse a folder that lacks a config; all that is missing is named at once."""
    wanted = [f"{part}/config.json" for part in (*family.parts, "vae")]
    wanted += [f"{encoder.tokenizer}/tokenizer_config.json" for encoder in family.encoders]
    wanted += ["scheduler/scheduler_config.json"]
    missing = [
        n for n in (*wanted, "scheduler/scheduler_config.json") if not (folder / n).is_file()
    ]
    for encoder in family.encoders:
        if not (folder / encoder.tokenizer / "tokenizer.json").is_file():
            pair = (f"{encoder.tokenizer}/{name}" for name in ("vocab.json", "merges.txt"))
            missing += [name for name in pair if not (folder / name).is_file()]
    if missing:
        raise ComposerError(
            f"{folder} is not complete: {', '.join(missing)} missing. Download the model again."
        )


def check_folder(folder: Path) -> tuple[Family, dict[str, tuple[Path, ...]]]:
    """The folder's family, and the weight files of each part."""
    family = check_pipeline(folder)
    check_configs(folder, family)
    stems = {"unet": _DIFFUSERS, "vae": _DIFFUSERS} | {e.part: "model" for e in family.encoders}
    files = {part: _weight_files(folder / part, stem) for part, stem in stems.items()}
    check_readable(path for paths in files.values() for path in paths)
    return family, files


def vae_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a VAE's folder."""
    files = _weight_files(folder, _DIFFUSERS)
    check_readable(files)
    return files


def check_readable(paths: Iterable[Path]) -> None:
    """Refuse a safetensors file that is cut off or is something else."""
    for path in paths:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ComposerError(
                f"{path} is not a whole safetensors file ({error}). Download it again."
            ) from error


def _weight_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """The plain files; where there are none, those of one variant (``model.fp16.safetensors``):
    fp16 first and non_ema last, for that is meant to be trained on."""
    variants: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"{stem}*.safetensors")):
        if named := _NAMED.fullmatch(path.name.removeprefix(stem)):
            variants.setdefault(named[1] or "", []).append(path)
    if variants:
        return _shards(folder, min(variants.items(), key=lambda item: _rank(item[0]))[1])
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in REFUSED_SUFFIXES):
        raise ComposerError(f"{folder} has its weights only as {', '.join(pickles)}. {CONVERT}")
    raise ComposerError(
        f"{folder} has no weights: {stem}.safetensors is missing. Download the model again."
    )


def _rank(variant: str) -> tuple[int, str]:
    return {"": 0, "fp16": 1, "non_ema": 3}.get(variant, 2), variant


def _shards(folder: Path, files: list[Path]) -> tuple[Path, ...]:
    """The same files, when every shard that an index beside them names with them is there."""
    for index in folder.glob("*.safetensors.index*.json"):
        weight_map: dict[str, str] = read_json(index).get("weight_map", {})
        names = set(weight_map.values())
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing and names & {path.name for path in files}:
            raise ComposerError(f"{folder} lacks {', '.join(missing)}. Download the model again.")
    return tuple(files)
