"""Load a Stable Diffusion: a diffusers folder, one .safetensors checkpoint, or a hub name."""

from __future__ import annotations

import contextlib
import gzip
import inspect
import os
import re
from collections.abc import Generator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from composer.diffusion.folder import (
    CONVERT,
    check_configs,
    check_folder,
    check_pipeline,
    check_readable,
)
from composer.diffusion.model import Model, TextEncoder
from composer.errors import ComposerError
from composer.experts.header import read_header
from composer.families import Family, find_family
from composer.files import LOADING

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CHECKPOINT_PARTS = ("model.diffusion_model.input_blocks.", "first_stage_model.")
_CHECKPOINT_ENCODERS = {
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.transformer."),
    "text_encoder_2": ("conditioner.embedders.1.", "conditioner.embedders.0.model."),
}
"""How the names of a text encoder's tensors begin in a checkpoint; the refiner of SDXL has the
second alone."""
_CROSS_ATTENTION = re.compile(r"model\.diffusion_model\.input_blocks\..*\.attn2\.to_k\.weight")
CONFIGS = Path(__file__).with_name("configs")
_FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def load_model(
    path_or_name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Model:
    """Load a model onto ``device`` ("auto" takes CUDA, then MPS, then the CPU).

    ``dtype`` is float16 on CUDA and float32 elsewhere unless given. What exists on disk, or looks
    like a path, is never asked of the hub. For a single checkpoint file the configs and the
    tokenizers come from a diffusers folder beside it with the same name but without
    ``.safetensors``; when there is none, they are those of its family's published model, which are
    part of Composer.

    Raises ComposerError, naming the file and the remedy, for anything that cannot be loaded.
    """
    target = choose_device(device)
    chosen = dtype or (torch.float16 if target.type == "cuda" else torch.float32)
    path = Path(path_or_name).expanduser()
    if path.suffix.lower() in _FILE_ENDINGS and not path.is_dir():
        return _load_file(path, target, chosen)
    if not path.is_dir():
        path = _download(str(path_or_name), path)
        return _load_folder(path, str(path_or_name), target, chosen)
    return _load_folder(path, path.resolve().name, target, chosen)


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


def _pipeline_class(family: Family) -> tuple[Any, dict[str, Any]]:
    """diffusers' pipeline, untyped as its methods are, and what to leave out of it; imported when a
    model is loaded at last."""
    found: Any = getattr(import_module("diffusers"), family.pipeline)
    parameters = inspect.signature(found.__init__).parameters
    optional = ("safety_checker", "feature_extractor", "image_encoder")
    without: dict[str, Any] = {name: None for name in optional if name in parameters}
    if "requires_safety_checker" in parameters:
        without["requires_safety_checker"] = False
    return found, without


def _load_folder(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> Model:
    family, files, variant = check_folder(folder)
    kind, without = _pipeline_class(family)
    with _explained(folder):
        pipeline: Any = kind.from_pretrained(
            folder,
            torch_dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            # else every module made meanwhile, in any thread, is made without memory
            low_cpu_mem_usage=False,
            **without,
        )
    return _model(pipeline, family, name, folder, tuple(files["unet"]), device, dtype)


def _load_file(path: Path, device: torch.device, dtype: torch.dtype) -> Model:
    if not path.is_file():
        raise ComposerError(f"There is no file {path}. Check the path.")
    if path.suffix.lower() != ".safetensors":
        raise ComposerError(f"{path} is not a .safetensors file. {CONVERT}")
    check_readable([path])
    family, schedule = _read_checkpoint(path)
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
    kind, without = _pipeline_class(family)
    with _explained(path):
        pipeline: Any = kind.from_single_file(
            str(path),
            torch_dtype=dtype,
            config=str(beside),
            local_files_only=True,
            **tokenizers,
            **without,
        )
    model = _model(pipeline, family, path.stem, path, (path,), device, dtype)
    return replace(model, scheduler_config={**model.scheduler_config, **schedule})


def _read_checkpoint(path: Path) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint by the names and shapes of its tensors, and what it says of its
    noise schedule.

    Raises:
        ComposerError: it is no checkpoint, or one of another architecture.
    """
    header = read_header(path)
    for prefix in _CHECKPOINT_PARTS:
        if not any(key.startswith(prefix) for key in header.tensors):
            raise ComposerError(
                f"{path} is not a Stable Diffusion checkpoint: it has no tensors {prefix}*. "
                "A LoRA belongs into the LoRA folder; a model holds U-Net, VAE and text encoder."
            )
    parts = {
        part
        for part, prefixes in _CHECKPOINT_ENCODERS.items()
        if any(key.startswith(prefixes) for key in header.tensors)
    }
    if "text_encoder" not in parts:
        raise ComposerError(
            f"{path} cannot be used: it has no text encoder of a text-to-image model. The refiner "
            "of SDXL and a U-Net alone are such files: choose a whole base model."
        )
    widths = {its.shape[-1] for key, its in header.tensors.items() if _CROSS_ATTENTION.match(key)}
    # trainers of v-prediction models mark their checkpoints by empty tensors, or by modelspec
    said = header.metadata.get("modelspec.prediction_type", "")
    schedule: dict[str, Any] = {}
    if said in ("v", "epsilon") or "v_pred" in header.tensors:
        schedule["prediction_type"] = "epsilon" if said == "epsilon" else "v_prediction"
    if "ztsnr" in header.tensors:
        schedule["rescale_betas_zero_snr"] = True
    return find_family(widths.pop() if len(widths) == 1 else 0, parts), schedule


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


def _model(
    pipeline: Any,
    family: Family,
    name: str,
    path: Path,
    weights: tuple[Path, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    for part in (*family.parts, "vae"):
        getattr(pipeline, part).eval().requires_grad_(False)
    return Model(
        name=name,
        path=path,
        weights=weights,
        family=family,
        unet=pipeline.unet.to(device=device, dtype=dtype),
        vae=pipeline.vae.to(device=device, dtype=torch.float32),
        encoders={
            encoder.part: TextEncoder(
                network=getattr(pipeline, encoder.part).to(device=device, dtype=dtype),
                tokenizer=getattr(pipeline, encoder.tokenizer),
            )
            for encoder in family.encoders
        },
        scheduler_config=dict(pipeline.scheduler.config),
        zero_negative=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
        device=device,
        dtype=dtype,
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
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ComposerError(f"{what} cannot be loaded: {reason} {remedy}") from error
    finally:
        if was_showing:
            logging.enable_progress_bar()
