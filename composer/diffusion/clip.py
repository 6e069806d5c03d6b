"""A CLIP of transformers: how well a picture shows what a text describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from composer.diffusion.model import Model
from composer.errors import ComposerError
from composer.files import LOADING

SUBFOLDER = "clip"  # of a model's folder, where its own CLIP may lie
EXAMPLE = "openai/clip-vit-base-patch16"
BYTES = 256  # a byte-pair vocabulary has at least these
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A CLIP of transformers, frozen, with what its pictures must look like.

    name: what it is called, for people.
    mean, std: of its pictures' channels, (1, 3, 1, 1), for values from 0 to 1.
    """

    name: str
    model: Any
    tokenizer: Any
    side: int
    mean: Tensor
    std: Tensor

    @classmethod
    def load(cls, name: str, model: Model) -> Clip:
        """A folder or hub name; empty takes the one that came with `model`.

        Raises:
            ComposerError: there is none, it is none, or it cannot be read.
        """
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        folder = name or str(own_clip(model))
        check_clip(folder)
        try:
            with LOADING:
                loaded: Any = cast(Any, CLIPModel).from_pretrained(
                    folder, use_safetensors=True, output_loading_info=True
                )
            tokenizer: Any = cast(Any, CLIPTokenizer).from_pretrained(folder)
            processor: Any = cast(Any, CLIPImageProcessor).from_pretrained(folder)
        except (OSError, ValueError, RuntimeError) as error:
            raise _refused(folder, _first_line(error)) from error
        clip, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise _refused(folder, f"it lacks the weights {missing[0]}")
        clip = clip.float().eval().requires_grad_(False).to(model.device)
        shape = (1, 3, 1, 1)
        return cls(
            name=name or f"the CLIP of {model.name}",
            model=clip,
            tokenizer=tokenizer,
            side=int(clip.config.vision_config.image_size),
            mean=torch.tensor(processor.image_mean).reshape(shape).to(model.device),
            std=torch.tensor(processor.image_std).reshape(shape).to(model.device),
        )

    def image(self, pictures: Tensor) -> Tensor:
        """(n, 3, height, width) in 0 to 1 -> (n, dim) of length 1, with a gradient."""
        if pictures.shape[-2:] != (self.side, self.side):
            pictures = functional.interpolate(
                pictures,
                size=(self.side, self.side),
                mode="bicubic",
                align_corners=False,
                antialias=True,
            )
        seen = self.model.vision_model(pixel_values=(pictures - self.mean) / self.std)
        return functional.normalize(self.model.visual_projection(seen.pooler_output), dim=-1)

    @torch.no_grad()
    def look(self, pictures: Sequence[Image.Image], *, batch_size: int = 32) -> Tensor:
        """Pictures as files have them, all of one size -> (n, dim) of length 1."""
        found: list[Tensor] = []
        for begin in range(0, len(pictures), batch_size):
            some = [np.asarray(p.convert("RGB")) for p in pictures[begin : begin + batch_size]]
            pixels = torch.tensor(np.stack(some)).permute(0, 3, 1, 2)  # (n, 3, height, width)
            found.append(self.image(pixels.to(self.mean.device).float() / 255))
        return torch.cat(found)

    @torch.no_grad()
    def text(self, prompts: list[str]) -> Tensor:
        """(n, dim) of length 1."""
        limit = int(self.model.config.text_config.max_position_embeddings)
        tokens = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        read = self.model.text_model(**tokens.to(self.mean.device))
        return functional.normalize(self.model.text_projection(read.pooler_output), dim=-1)


def own_clip(model: Model) -> Path:
    """The folder of the CLIP that came with a model.

    Raises:
        ComposerError: the model has none.
    """
    folder = model.path / SUBFOLDER
    if not folder.is_dir():
        raise ComposerError(f"{model.name} has no CLIP beside it: name one, such as {EXAMPLE}.")
    return folder


def check_clip(name: str) -> None:
    """Refuse what is no CLIP of transformers, by its small files alone; no weights are read.

    name: a folder or hub name. Of the hub only what is in its cache is asked, but for small files
        that are not there yet.

    Raises:
        ComposerError: it is not there, is another model, or its weights are not safetensors.
    """
    from huggingface_hub import file_exists, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from transformers import CLIPImageProcessor, CLIPTokenizer, PretrainedConfig

    folder = Path(name).expanduser()
    looks_like_a_path = name.startswith((".", "/", "~")) or folder.exists()
    if looks_like_a_path and not folder.is_dir():
        raise _refused(name, "there is no such folder")
    try:
        found: Any = cast(Any, PretrainedConfig).get_config_dict(name)[0]
        if (kind := found.get("model_type")) != "clip":
            raise _refused(
                name, f"it is a model of the kind {kind!r}" if kind else "it says no kind"
            )
        # where its files are missing, transformers makes one that knows no word
        if len(cast(Any, CLIPTokenizer).from_pretrained(name)) < BYTES:
            raise _refused(name, "it has no tokenizer")
        cast(Any, CLIPImageProcessor).from_pretrained(name)
        if folder.is_dir():
            there = any((folder / file).is_file() for file in WEIGHTS)
        else:
            cached = any(isinstance(try_to_load_from_cache(name, file), str) for file in WEIGHTS)
            there = cached or any(file_exists(name, file) for file in WEIGHTS)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        if isinstance(error, ComposerError):
            raise
        raise _refused(name, _first_line(error)) from error
    if not there:
        raise _refused(name, "it has no weights in safetensors")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _refused(name: str, reason: str) -> ComposerError:
    return ComposerError(
        f"The CLIP {name} cannot be used ({reason}): give the folder or hub name of a CLIP of "
        f"transformers with safetensors weights, such as {EXAMPLE}."
    )
