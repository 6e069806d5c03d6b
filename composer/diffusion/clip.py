"""CLIPs and DINOs of transformers: how well a picture shows what a text describes, or what another
picture shows."""

from __future__ import annotations

import hashlib
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
BYTES = 256  # a byte-pair vocabulary has at least these
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What transformers calls the parts of an image encoder.

    types: of its configuration. words: whether it reads texts too.
    """

    name: str
    types: tuple[str, ...]
    model: str
    processor: str
    words: bool
    example: str


CLIP = Kind(
    name="CLIP",
    types=("clip",),
    model="CLIPModel",
    processor="CLIPImageProcessor",
    words=True,
    example="openai/clip-vit-base-patch16",
)
DINO = Kind(
    name="DINO",
    types=("dinov2", "dinov2_with_registers", "vit"),
    model="AutoModel",
    processor="BitImageProcessor",
    words=False,
    example="facebook/dinov2-base",
)


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
        clip, processor, tokenizer = _load(CLIP, name or str(own_clip(model)), model.device)
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

    def text(self, prompts: list[str]) -> Tensor:
        """(n, dim) of length 1."""
        return _read(self.model, self.tokenizer, prompts)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A CLIP or DINO, frozen, whose pictures are prepared as its own files say.

    hash: SHA-256 of its weights and of how pictures are prepared.
    """

    kind: Kind
    hash: str
    model: Any
    processor: Any
    tokenizer: Any

    @property
    def width(self) -> int:
        """Of its vectors."""
        config = self.model.config
        return int(config.projection_dim if self.kind.words else config.hidden_size)

    @classmethod
    def load(cls, kind: Kind, name: str, device: torch.device) -> Encoder:
        """A folder or hub name.

        Raises:
            ComposerError: as `check_encoder`, or it cannot be read.
        """
        model, processor, tokenizer = _load(kind, name, device)
        digest = hashlib.sha256(processor.to_json_string().encode())
        for key, tensor in sorted(model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.contiguous().cpu().numpy())
        return cls(
            kind=kind,
            hash=digest.hexdigest(),
            model=model,
            processor=processor,
            tokenizer=tokenizer,
        )

    def look(self, picture: Image.Image) -> Tensor:
        """(dim,) of length 1, on the CPU: a CLIP's projection, or the class token of a DINO."""
        return self.look_at([picture])[0]

    @torch.no_grad()
    def look_at(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The same of several pictures at once, (n, dim)."""
        images = [picture.convert("RGB") for picture in pictures]
        prepared = self.processor(images=images, return_tensors="pt")
        pixels = prepared["pixel_values"].to(self.model.device)
        if not self.kind.words:
            found = self.model(pixel_values=pixels).last_hidden_state[:, 0]
        else:
            seen = self.model.vision_model(pixel_values=pixels).pooler_output
            found = self.model.visual_projection(seen)
        return functional.normalize(found, dim=-1).cpu()

    def read(self, text: str) -> Tensor:
        """(dim,) of length 1 on the CPU, of a text that is cut to what a CLIP takes."""
        return _read(self.model, self.tokenizer, [text])[0].cpu()


def _load(kind: Kind, name: str, device: torch.device) -> tuple[Any, Any, Any]:
    """Model, image processor, and tokenizer (None of a kind without)."""
    import transformers

    check_encoder(kind, name)
    try:
        with LOADING:
            loaded: Any = getattr(transformers, kind.model).from_pretrained(
                name, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        processor: Any = getattr(transformers, kind.processor).from_pretrained(name)
        words: Any = cast(Any, transformers.CLIPTokenizer)
        tokenizer = words.from_pretrained(name) if kind.words else None
    except (OSError, ValueError, RuntimeError) as error:
        raise _refused(kind, name, _first_line(error)) from error
    model, info = loaded
    # the pooler of a ViT is trained with a task of its own, and is not used
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        raise _refused(kind, name, f"it lacks the weights {missing[0]}")
    return model.float().eval().requires_grad_(False).to(device), processor, tokenizer


@torch.no_grad()
def _read(model: Any, tokenizer: Any, prompts: list[str]) -> Tensor:
    """A CLIP's (n, dim) of length 1."""
    limit = int(model.config.text_config.max_position_embeddings)
    tokens = tokenizer(
        prompts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
    )
    read = model.text_model(**tokens.to(model.device))
    return functional.normalize(model.text_projection(read.pooler_output), dim=-1)


def own_clip(model: Model) -> Path:
    """The folder of the CLIP that came with a model.

    Raises:
        ComposerError: the model has none.
    """
    folder = model.path / SUBFOLDER
    if not folder.is_dir():
        raise ComposerError(
            f"{model.name} has no CLIP beside it: name one, such as {CLIP.example}."
        )
    return folder


def check_clip(name: str) -> None:
    """Refuse what is no CLIP, as `check_encoder`."""
    check_encoder(CLIP, name)


def check_encoder(kind: Kind, name: str) -> None:
    """Refuse what is none of this kind, by its small files alone; no weights are read.

    name: a folder or hub name. Of the hub only what is in its cache is asked, but for small files
        that are not there yet.

    Raises:
        ComposerError: it is not there, is another model, or its weights are not safetensors.
    """
    import transformers
    from huggingface_hub import file_exists, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(name).expanduser()
    looks_like_a_path = name.startswith((".", "/", "~")) or folder.exists()
    if looks_like_a_path and not folder.is_dir():
        raise _refused(kind, name, "there is no such folder")
    try:
        found: Any = cast(Any, transformers.PretrainedConfig).get_config_dict(name)[0]
        if (other := found.get("model_type")) not in kind.types:
            reason = f"it is a model of the kind {other!r}" if other else "it says no kind"
            raise _refused(kind, name, reason)
        # where its files are missing, transformers makes one that knows no word
        words: Any = cast(Any, transformers.CLIPTokenizer)
        if kind.words and len(words.from_pretrained(name)) < BYTES:
            raise _refused(kind, name, "it has no tokenizer")
        getattr(transformers, kind.processor).from_pretrained(name)
        if folder.is_dir():
            there = any((folder / file).is_file() for file in WEIGHTS)
        else:
            cached = any(isinstance(try_to_load_from_cache(name, file), str) for file in WEIGHTS)
            there = cached or any(file_exists(name, file) for file in WEIGHTS)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        if isinstance(error, ComposerError):
            raise
        raise _refused(kind, name, _first_line(error)) from error
    if not there:
        raise _refused(kind, name, "it has no weights in safetensors")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _refused(kind: Kind, name: str, reason: str) -> ComposerError:
    return ComposerError(
        f"The {kind.name} {name} cannot be used ({reason}): give the folder or hub name of a "
        f"{kind.name} of transformers with safetensors weights, such as {kind.example}."
    )
