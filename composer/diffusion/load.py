"""Load a Stable Diffusion: a diffusers folder, one .safetensors checkpoint, or a hub name."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from composer.diffusion.folder import (
    CONVERT,
    check_configs,
    check_folder,
    check_pipeline,
    check_readable,
)
from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.files import LOADING

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CHECKPOINT_PARTS = (
    "model.diffusion_model.input_blocks.",
    "first_stage_model.",
    "cond_stage_model.",
)
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
    tokenizer come from a diffusers folder beside it with the same name but without ``.safetensors``
    or, when there is none, from the hub.

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


def _pipeline_class() -> Any:
    """diffusers' pipeline, untyped as its methods are; imported when a model is loaded at last."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    return StableDiffusionPipeline


def _load_folder(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> Model:
    files, variant = check_folder(folder)
    with _explained(folder):
        pipeline: Any = _pipeline_class().from_pretrained(
            folder,
            torch_dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            # else every module made meanwhile, in any thread, is made without memory
            low_cpu_mem_usage=False,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _model(pipeline, name, folder, tuple(files["unet"]), device, dtype)


def _load_file(path: Path, device: torch.device, dtype: torch.dtype) -> Model:
    if not path.is_file():
        raise ComposerError(f"There is no file {path}. Check the path.")
    if path.suffix.lower() != ".safetensors":
        raise ComposerError(f"{path} is not a .safetensors file. {CONVERT}")
    check_readable([path])
    _check_family(path)
    beside = path.with_suffix("")
    configs: dict[str, Any] = {}
    if beside.is_dir():
        check_pipeline(beside)
        check_configs(beside)
        configs = {"config": str(beside), "local_files_only": True}
    remedy = (
        f"Its configs and tokenizer were looked for in {beside} and on the hub. Put a diffusers "
        "folder of the same kind of model there (its weights are not needed)."
    )
    with _explained(path, remedy):
        pipeline: Any = _pipeline_class().from_single_file(
            str(path),
            torch_dtype=dtype,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **configs,
        )
    return _model(pipeline, path.stem, path, (path,), device, dtype)


def _check_family(path: Path) -> None:
    """Refuse by name a checkpoint of another architecture, known by the names of its tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
        keys: list[str] = list(file.keys())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    if any(key.startswith("conditioner.embedders.") for key in keys):
        raise ComposerError(
            f"{path} is an SDXL checkpoint; Composer composes with Stable Diffusion 1.x and 2.x "
            "and cannot load it. Choose another model."
        )
    for prefix in _CHECKPOINT_PARTS:
        if not any(key.startswith(prefix) for key in keys):
            raise ComposerError(
                f"{path} is not a Stable Diffusion checkpoint: it has no tensors {prefix}*. "
                "A LoRA belongs into the LoRA folder; a model holds U-Net, VAE and text encoder."
            )


def _model(
    pipeline: Any,
    name: str,
    path: Path,
    weights: tuple[Path, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval().requires_grad_(False)
    return Model(
        name=name,
        path=path,
        weights=weights,
        unet=pipeline.unet.to(device=device, dtype=dtype),
        vae=pipeline.vae.to(device=device, dtype=torch.float32),
        text_encoder=pipeline.text_encoder.to(device=device, dtype=dtype),
        tokenizer=pipeline.tokenizer,
        scheduler_config=dict(pipeline.scheduler.config),
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
        return Path(_pipeline_class().download(name, use_safetensors=True, safety_checker=None))


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
