"""What a person asks for: one frozen request, checked where it is made."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image, ImageOps

from composer.diffusion.samplers import AUTOMATIC, find_sampler, split_sampler
from composer.errors import ComposerError
from composer.outside import is_unicode
from composer.settings import Settings, setting

MAX_STEPS = 500
MAX_COUNT = 64
MAX_CFG = 50.0
MAX_CLIP_SKIP = 12
MAX_SIDE = 8192
MAX_HIRES = 4.0
MAX_PROMPT = 2**16  # characters
SEEDS = 2**64  # as PyTorch takes them
DRAWN_SEEDS = 2**32  # short enough to be read out
RANDOM_SEED = -1
PIXELS = "in pixels"


@dataclass(frozen=True, kw_only=True)
class Request(Settings):
    """A prompt and how to sample it.

    ``seed`` -1 is drawn when the request is resolved; picture i has seed + i (modulo 2**64).
    ``width`` and ``height`` in pixels; None is the model's own size. ``cfg_scale`` 1 is without
    guidance, where the negative prompt has no effect. ``clip_skip`` counts as in A1111: 1 takes
    the text encoder's last layer, 2 the one before it. A ``sampler`` that names its schedule too,
    "DPM++ 2M Karras", is taken apart.
    """

    noun: ClassVar[str] = "settings of a request"

    prompt: str = ""
    negative_prompt: str = setting("", option="negative", help="What to keep out.")
    seed: int = setting(
        RANDOM_SEED,
        at_least=RANDOM_SEED,
        at_most=SEEDS - 1,
        named="The seed",
        hint="-1 draws one",
        help="-1 draws one; further pictures count up from it.",
    )
    steps: int = setting(
        20,
        at_least=1,
        at_most=MAX_STEPS,
        named="The number of steps",
        hint="20 to 50 is usual",
        help="Denoising steps.",
    )
    cfg_scale: float = setting(
        7.0,
        at_least=1,
        at_most=MAX_CFG,
        option="cfg",
        named="The CFG scale",
        help="CFG scale: how closely to follow the prompt.",
        hint="1 is without guidance, 3 to 8 is usual",
    )
    sampler: str = setting("DPM++ 2M", help="A sampler by its A1111 name.")
    schedule: str = setting(
        AUTOMATIC,
        help="Where the steps are, by A1111's schedule types: Karras, Exponential, SGM Uniform and "
        "others; Automatic is the model's own.",
    )
    width: int | None = setting(None, at_least=1, at_most=MAX_SIDE, named="The width", hint=PIXELS)
    height: int | None = setting(
        None, at_least=1, at_most=MAX_SIDE, named="The height", hint=PIXELS
    )
    count: int = setting(
        1,
        at_least=1,
        at_most=MAX_COUNT,
        named="The number of pictures",
        hint="ask again for more",
        help="How many pictures.",
    )
    clip_skip: int = setting(
        1,
        at_least=1,
        at_most=MAX_CLIP_SKIP,
        named="Clip skip",
        hint="1 is usual",
        help="1 takes the text encoder's last layer.",
    )
    strength: float = setting(
        0.7,
        above=0,
        at_most=1,
        named="The denoising strength",
        hint="0.3 to 0.8 is usual",
        help="Denoising strength: how much of a start picture, or in a second pass, is drawn anew.",
    )
    hires: float = setting(
        1.0,
        at_least=1,
        at_most=MAX_HIRES,
        named="The factor of the second pass",
        hint="1 is without one, 1.5 or 2 is usual",
        help="A second pass at so many times the width and height; 1 is none.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt", "negative_prompt"):
            _check_text(name.replace("_", " "), getattr(self, name))
        sampler, schedule = split_sampler(self.sampler, self.schedule)
        object.__setattr__(self, "sampler", sampler)
        object.__setattr__(self, "schedule", schedule)
        find_sampler(sampler, schedule)

    def resolve(self, *, size: int, multiple: int) -> Request:
        """The request with its seed drawn and its size that of a model of this size and multiple.

        A width or height that is not a multiple is refused with the nearest ones that fit.
        """
        width = size if self.width is None else self.width
        height = size if self.height is None else self.height
        for side, pixels in (("width", width), ("height", height)):
            if pixels % multiple:
                below = pixels // multiple * multiple
                above = below + multiple
                fits = f"{below} or {above}" if below else f"{above}"
                raise ComposerError(
                    f"The {side} {pixels} does not fit this model, which needs a multiple of "
                    f"{multiple} pixels. The nearest that fits: {fits}."
                )
        return dataclasses.replace(self.drawn(), width=width, height=height)

    def drawn(self) -> Request:
        """The request with its seed drawn, if it is to be."""
        if self.seed != RANDOM_SEED:
            return self
        return dataclasses.replace(self, seed=secrets.randbelow(DRAWN_SEEDS))

    def seed_of(self, index: int) -> int:
        """The seed of picture ``index`` of a request whose seed is drawn."""
        return (self.seed + index) % SEEDS


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """A picture to begin from, and where it is drawn anew: where ``mask`` is light, or everywhere.

    Both are cut to the picture's proportions, from their middle, and scaled.
    """

    image: Image.Image
    mask: Image.Image | None = None

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of all pixels: another picture or mask has another one."""
        digest = hashlib.sha256()
        for image in (self.image.convert("RGB"), self.mask and self.mask.convert("L")):
            if image is not None:
                digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        return digest.hexdigest()

    def fitted(self, width: int, height: int) -> Start:
        """Both as pictures of this size."""
        size = (width, height)
        image = ImageOps.fit(self.image.convert("RGB"), size, Image.Resampling.LANCZOS)
        mask = self.mask and ImageOps.fit(self.mask.convert("L"), size, Image.Resampling.BILINEAR)
        return Start(image=image, mask=mask)


def _check_text(what: str, value: str) -> None:
    if len(value) > MAX_PROMPT:
        raise ComposerError(
            f"The {what} has {len(value)} characters; {MAX_PROMPT} are the most. Shorten it."
        )
    if not is_unicode(value):
        raise ComposerError(
            f"The {what} holds half a letter (a lone surrogate), which is no text: write it again."
        )
