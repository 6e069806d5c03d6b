"""A model of its configs and weights: the networks are read one by one, each into memory once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from composer.diffusion.checkpoint import text_encoder_of, unet_of, vae_of
from composer.diffusion.folder import NONE, read_json
from composer.diffusion.model import Model, TextEncoder
from composer.diffusion.own_vae import OwnVae
from composer.diffusion.weights import Weights, build
from composer.errors import ComposerError
from composer.families import Family


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model that is there to be loaded.

    path: its folder, or the single file that it is.
    configs: the folder of its configs.
    files: the weights of each part; of a single file, that file for every part.
    schedule: what its weights say of the noise schedule, over the config.
    tokenizers: where there are none in `configs`, by the folders that elsewhere hold them.
    """

    name: str
    path: Path
    family: Family
    configs: Path
    files: Mapping[str, tuple[Path, ...]]
    schedule: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokenizers: Mapping[str, Any] = field(default_factory=dict[str, Any])


def assemble(
    found: Found, *, device: torch.device, dtype: torch.dtype, vae: OwnVae | None = None
) -> Model:
    """The model, with another VAE than its own if one is given.

    The U-Net, which is most of it, is read last: only of what comes before is there a second copy
    for a moment, where a checkpoint keeps it in another form.

    Raises:
        ComposerError: weights are missing, or do not fit the configs or each other.
    """
    family = found.family
    encoders = {
        encoder.part: TextEncoder(
            network=_text_encoder(found, encoder.part, device, dtype),
            tokenizer=found.tokenizers.get(encoder.tokenizer)
            or _tokenizer(found.configs / encoder.tokenizer),
        )
        for encoder in family.encoders
    }
    autoencoder = _vae(found, device, vae)
    unet = _unet(found, device, dtype)
    pipeline = _pipeline(found, unet=unet, vae=autoencoder, encoders=encoders)
    return Model(
        name=found.name,
        path=found.path,
        weights=found.files["unet"],
        family=family,
        unet=unet,
        vae=autoencoder,
        encoders=encoders,
        scheduler_config={**pipeline.scheduler.config, **found.schedule},
        zero_negative=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
        device=device,
        dtype=dtype,
        vae_name=vae.name if vae else "",
        vae_weights=vae.files if vae else (),
    )


def _unet(found: Found, device: torch.device, dtype: torch.dtype) -> Any:
    kind: Any = import_module("diffusers").UNet2DConditionModel
    config = read_json(found.configs / "unet" / "config.json")
    weights = Weights(found.files["unet"])
    return build(
        lambda: kind.from_config(config),
        unet_of(weights, config) if found.path.is_file() else weights.tensors,
        source=f"The unet of {found.path}",
        device=device,
        dtype=dtype,
        forget=weights.forget,
    )


def _vae(found: Found, device: torch.device, own: OwnVae | None) -> Any:
    kind: Any = import_module("diffusers").AutoencoderKL
    config = dict(own.config) if own else read_json(found.configs / "vae" / "config.json")
    weights = Weights(own.files if own else found.files["vae"])
    return build(
        lambda: kind.from_config(config),
        vae_of(weights, config),
        source=f"The VAE {own.files[0]}" if own else f"The vae of {found.path}",
        device=device,
        dtype=torch.float32,  # in float16 it overflows to black pictures
        forget=weights.forget,
    )


def _text_encoder(found: Found, part: str, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind: Any = CLIPTextModelWithProjection if part == found.family.pooled else CLIPTextModel
    config: Any = cast(Any, CLIPTextConfig).from_pretrained(found.configs / part)
    weights = Weights(found.files[part])
    return build(
        lambda: kind(config),
        text_encoder_of(weights, part) if found.path.is_file() else weights.tensors,
        source=f"The {part} of {found.path}",
        device=device,
        dtype=dtype,
        forget=weights.forget,
    )


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return cast(Any, CLIPTokenizer).from_pretrained(folder, local_files_only=True)


def _pipeline(found: Found, *, unet: Any, vae: Any, encoders: Mapping[str, TextEncoder]) -> Any:
    """diffusers' pipeline of these parts, which sets right what old configs say; untyped, as its
    methods are."""
    diffusers: Any = import_module("diffusers")
    kind = getattr(diffusers, found.family.pipeline)
    parameters = inspect.signature(kind.__init__).parameters
    index = read_json(found.configs / "model_index.json")
    name = str((index.get("scheduler") or NONE)[-1])
    if not name.endswith("Scheduler") or not hasattr(diffusers, name):
        raise ComposerError(
            f"{found.configs} names a scheduler {name[:60]}, which diffusers does not have. Choose "
            "another model."
        )
    scheduler = getattr(diffusers, name).from_pretrained(
        found.configs, subfolder="scheduler", local_files_only=True
    )
    settings = {name: index[name] for name in parameters if isinstance(index.get(name), bool)}
    optional = ("safety_checker", "feature_extractor", "image_encoder")
    settings |= {name: None for name in optional if name in parameters}
    if "requires_safety_checker" in parameters:
        settings["requires_safety_checker"] = False
    for encoder in found.family.encoders:
        settings[encoder.part] = encoders[encoder.part].network
        settings[encoder.tokenizer] = encoders[encoder.part].tokenizer
    return kind(unet=unet, vae=vae, scheduler=scheduler, **settings)
