"""A whole model in one file, in the naming of the original Stable Diffusion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from composer.diffusion.weights import Weights
from composer.errors import ComposerError
from composer.experts.header import read_header
from composer.families import Family, find_family

UNET = "model.diffusion_model."
VAE = "first_stage_model."
_CHECKPOINT_PARTS = (f"{UNET}input_blocks.", VAE)
_CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
_OPEN_CLIP = {
    "text_encoder": "cond_stage_model.model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
_CHECKPOINT_ENCODERS = {
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.transformer."),
    "text_encoder_2": ("conditioner.embedders.1.", "conditioner.embedders.0.model."),
}
"""How the names of a text encoder's tensors begin in a checkpoint; the refiner of SDXL has the
second alone."""
_CROSS_ATTENTION = re.compile(r"model\.diffusion_model\.input_blocks\..*\.attn2\.to_k\.weight")


def read_checkpoint(path: Path) -> tuple[Family, dict[str, Any]]:
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


def unet_of(weights: Weights, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The U-Net's tensors in a checkpoint, by diffusers' names.

    As in A1111 they are those of `model.diffusion_model`; a moving average beside them, as
    `model_ema`, is left out.
    """
    own = {name: its for name, its in weights.tensors.items() if name.startswith(UNET)}
    return _conversions().convert_ldm_unet_checkpoint(own, config)


def vae_of(weights: Weights, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The VAE's tensors in a checkpoint or in a VAE's own file, by diffusers' names.

    Such a file has them with or without the prefix, in the original naming or in diffusers'.
    """
    own = weights.below(VAE) or weights.tensors
    if any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in own):
        return dict(own)
    return _conversions().convert_ldm_vae_checkpoint(own, config)


def text_encoder_of(weights: Weights, part: str) -> dict[str, Tensor]:
    """The tensors of a text encoder in a checkpoint, by transformers' names."""
    prefix = _OPEN_CLIP[part]
    own = weights.below(prefix)
    if not own:
        return weights.below(*_CLIP) if part == "text_encoder" else {}
    # it asks a network for its width where the file has no projection
    width = own["ln_final.weight"].shape[0] if "ln_final.weight" in own else 0
    like = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    return _conversions().convert_open_clip_checkpoint(like, weights.tensors, prefix=prefix)


def _conversions() -> Any:
    """diffusers' functions between the namings, which have no types."""
    return import_module("diffusers.loaders.single_file_utils")
