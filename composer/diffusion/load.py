"""Load a Stable Diffusion: a diffusers folder, one .safetensors checkpoint, or a hub name."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import torch

from composer.diffusion.assemble import Found, assemble
from composer.diffusion.checkpoint import read_checkpoint
from composer.diffusion.folder import (
    CONVERT,
    check_configs,
    check_folder,
    check_pipeline,
    check_readable,
    read_json,
)
from composer.diffusion.lowvram import with_low_memory
from composer.diffusion.model import Model
from composer.diffusion.own_vae import find_vae
from composer.errors import ComposerError
from composer.files import LOADING
from composer.precision import in_bfloat16

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DTYPES = ("auto", "float32", "float16", "bfloat16")
CONFIGS = Path(__file__).with_name("configs")
_FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def load_model(
    path_or_name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    vae: str | os.PathLike[str] | None = None,
    lowvram: bool = False,
) -> Model:
    """Load a model onto ``device`` ("auto" takes CUDA, then MPS, then the CPU).

    ``dtype``, also by its name, is float16 on CUDA and float32 elsewhere unless given; "auto" is
    bfloat16 on a processor that multiplies it faster, and otherwise the same. What exists on disk,
    or looks like a path, is never asked of the hub. For a single checkpoint file the configs and
    the tokenizers come from a diffusers folder beside it with the same name but without
    ``.safetensors``; when there is none, they are those of its family's published model, which are
    part of Composer. ``vae`` is used in place of the model's: a diffusers folder or a file.
    ``lowvram`` takes less memory on the device, as `with_low_memory` says.

    Raises ComposerError, naming the file and the remedy, for anything that cannot be loaded.
    """
    target = choose_device(device)
    chosen = _choose_dtype(dtype, target)
    path = Path(path_or_name).expanduser()
    if path.suffix.lower() in _FILE_ENDINGS and not path.is_dir():
        found = _find_file(path)
    elif path.is_dir():
        found = _find_folder(path, path.resolve().name)
    else:
        found = _find_folder(_download(str(path_or_name), path), str(path_or_name))
    own = None
    if vae is not None:
        config = read_json(found.configs / "vae" / "config.json")
        own = find_vae(os.fspath(vae), config, found.name)
    with _explained(found.path):
        place = torch.device("cpu") if lowvram else target
        model = assemble(found, device=place, dtype=chosen, vae=own)
        return with_low_memory(model, target) if lowvram else model


def choose_device(device: str | torch.device) -> torch.device:
    """The torch device meant by ``device``; one that this machine lacks is an error."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and torch.backends.mps.is_available():
            device = "mps"
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ComposerError(
            f"There is no device {device!r}. Use auto, cpu, cuda or mps."
        ) from error
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(target.type, False):
        raise ComposerError(f"This machine has no {target.type} device for torch. Use auto or cpu.")
    return target


def _choose_dtype(given: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if isinstance(given, torch.dtype):
        return given
    if given not in (None, *_DTYPES):
        raise ComposerError(f"There is no dtype {given!r}. Choose one of: {', '.join(_DTYPES)}.")
    if given == "float16" or (given in (None, "auto") and device.type == "cuda"):
        return torch.float16
    return torch.bfloat16 if in_bfloat16(given or "float32", str(device)) else torch.float32


def _find_folder(folder: Path, name: str) -> Found:
    family, files = check_folder(folder)
    return Found(name=name, path=folder, family=family, configs=folder, files=files)


def _find_file(path: Path) -> Found:
    if not path.is_file():
        raise ComposerError(f"There is no file {path}. Check the path.")
    if path.suffix.lower() != ".safetensors":
        raise ComposerError(f"{path} is not a .safetensors file. {CONVERT}")
    check_readable([path])
    family, schedule = read_checkpoint(path)
    beside = path.with_suffix("")
    tokenizers: dict[str, Any] = {}
    if beside.is_dir():
        family = check_pipeline(beside)
        check_configs(beside, family)
    elif family.config:
        beside = CONFIGS / family.config
        tokenizers = {e.tokenizer: published_tokenizer(e.pads) for e in family.encoders}
    else:
        raise ComposerError(
            f"{path} is {family.name}, whose configs and tokenizer Composer does not have. Put a "
            f"diffusers folder of the same kind of model at {beside} (its weights are not needed)."
        )
    return Found(
        name=path.stem,
        path=path,
        family=family,
        configs=beside,
        files=dict.fromkeys((*family.parts, "vae"), (path,)),
        schedule=schedule,
        tokenizers=tokenizers,
    )


def published_tokenizer(pads: str) -> Any:
    """The tokenizer of OpenAI's CLIP, which all families read prompts with.

    pads: the token that fills up a prompt; the end of text where it is empty.
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = gzip.decompress((CONFIGS / "clip_merges.txt.gz").read_bytes()).decode().split("\n")
    letters: list[str] = list(bytes_to_unicode().values())
    end = "<|endoftext|>"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [merge.replace(" ", "") for merge in merges] + ["<|startoftext|>", end]
    return cast(Any, CLIPTokenizer)(
        vocab={word: index for index, word in enumerate(words)},
        merges=[tuple(merge.split()) for merge in merges],
        model_max_length=77,
        pad_token=pads or end,
    )


def _download(name: str, path: Path) -> Path:
    """The folder into which the hub's copy of ``name`` was brought; local paths fail at once."""
    looks_local = (
        path.exists()
        or not _HUB_NAME.fullmatch(name)
        or (Path(name).parts[0] != name and Path(Path(name).parts[0]).exists())
    )
    if looks_local:
        raise ComposerError(
            f"There is no model folder {name}. Give a diffusers folder, a .safetensors checkpoint, "
            "or a hub name of the form owner/name."
        )
    remedy = (
        f"There is no folder {name} here either. Check the name and the connection, or give the "
        "path of a folder."
    )
    with _explained(name, remedy):
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        hub: Any = DiffusionPipeline
        return Path(hub.download(name, use_safetensors=True, safety_checker=None))


@contextlib.contextmanager
def _explained(what: str | Path, remedy: str = "Download the model again.") -> Generator[None]:
    """Turn what the libraries raise while loading into our error, quietly."""
    from diffusers.utils import logging

    was_showing = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with LOADING:
            yield
    except ComposerError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ComposerError(f"{what} cannot be loaded: {reason} {remedy}") from error
    finally:
        if was_showing:
            logging.enable_progress_bar()
