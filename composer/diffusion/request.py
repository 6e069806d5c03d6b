"""What a person asks for: one frozen request, checked where it is made."""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass
from typing import Any

from composer.diffusion.samplers import find_sampler
from composer.errors import ComposerError
from composer.outside import is_unicode, parse_object

MAX_STEPS = 500
MAX_COUNT = 64
MAX_CFG = 50.0
MAX_CLIP_SKIP = 12
MAX_SIDE = 8192
MAX_PROMPT = 2**16  # characters
SEEDS = 2**32
RANDOM_SEED = -1


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to sample it.

    ``seed`` -1 is drawn when the request is resolved; picture i has seed + i (modulo 2**32).
    ``width`` and ``height`` in pixels; None is the model's own size. ``cfg_scale`` 1 is without
    guidance, where the negative prompt has no effect. ``clip_skip`` counts as in A1111: 1 takes
    the text encoder's last layer, 2 the one before it.
    """

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = RANDOM_SEED
    steps: int = 20
    cfg_scale: float = 7.0
    sampler: str = "DPM++ 2M"
    width: int | None = None
    height: int | None = None
    count: int = 1
    clip_skip: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            _check_text(name.replace("_", " "), getattr(self, name))
        _check_whole("The number of steps", self.steps, 1, MAX_STEPS, "20 to 50 is usual")
        _check_whole("The number of pictures", self.count, 1, MAX_COUNT, "ask again for more")
        _check_whole("Clip skip", self.clip_skip, 1, MAX_CLIP_SKIP, "1 is usual")
        _check_whole("The seed", self.seed, RANDOM_SEED, SEEDS - 1, "-1 draws one")
        for side in ("width", "height"):
            if getattr(self, side) is not None:
                _check_whole(f"The {side}", getattr(self, side), 1, MAX_SIDE, "in pixels")
        if not _is_number(self.cfg_scale) or not 1 <= self.cfg_scale <= MAX_CFG:
            raise ComposerError(
                f"The CFG scale is {self.cfg_scale!r}; give a number from 1 (no guidance) to "
                f"{MAX_CFG:g}; 3 to 8 is usual."
            )
        object.__setattr__(self, "cfg_scale", float(self.cfg_scale))
        find_sampler(self.sampler)

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
        seed = secrets.randbelow(SEEDS) if self.seed == RANDOM_SEED else self.seed
        return dataclasses.replace(self, seed=seed, width=width, height=height)

    def seed_of(self, index: int) -> int:
        """The seed of picture ``index`` of a request whose seed is drawn."""
        return (self.seed + index) % SEEDS

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """One line of JSON, read back by :meth:`from_json`."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Request:
        """The request with these values; an unknown name is an error that lists the known ones."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ComposerError(
                f"A request has no {', '.join(map(repr, unknown))}. "
                f"It has: {', '.join(sorted(known))}."
            )
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """The request written by :meth:`to_json`."""
        try:
            values = parse_object(text)
        except ValueError as error:
            raise ComposerError(f"The request is not JSON as it should be: {error}.") from error
        return cls.from_dict(values)


def _check_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise ComposerError(f"The {what} must be text; it may be empty.")
    if len(value) > MAX_PROMPT:
        raise ComposerError(
            f"The {what} has {len(value)} characters; {MAX_PROMPT} are the most. Shorten it."
        )
    if not is_unicode(value):
        raise ComposerError(
            f"The {what} holds half a letter (a lone surrogate), which is no text: write it again."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_whole(what: str, value: object, least: int, most: int, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ComposerError(
            f"{what} is {value!r}; give a whole number from {least} to {most} ({hint})."
        )
