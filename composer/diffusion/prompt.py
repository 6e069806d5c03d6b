"""LoRA tags in a prompt: ``<lora:name:weight>`` as in A1111."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from composer.errors import ComposerError

MAX_LORAS = 100
"""Of one picture."""

_TAG = re.compile(r"<lora:([^<>]*)>", re.IGNORECASE)
_OPENING = re.compile(r"<lora\b[^<>]*>?", re.IGNORECASE)
_FORMS = "<lora:name:weight>, <lora:name:text_encoder:unet> or <lora:name:te=0.5:unet=1>"


@dataclass(frozen=True, kw_only=True)
class LoraTag:
    """One LoRA asked for in a prompt, with its weight in the U-Net and in the text encoder."""

    name: str
    unet: float = 1.0
    text_encoder: float = 1.0

    def __str__(self) -> str:
        if self.unet == self.text_encoder:
            return f"<lora:{self.name}:{self.unet:g}>"
        return f"<lora:{self.name}:{self.text_encoder:g}:{self.unet:g}>"


@dataclass(frozen=True, kw_only=True)
class ParsedPrompt:
    """A prompt without its tags, and the tags in their order."""

    text: str
    loras: tuple[LoraTag, ...] = ()


def parse_prompt(text: str) -> ParsedPrompt:
    """Split ``text`` into the words for the text encoder and its LoRA tags.

    As in A1111, one weight is for both parts, and of two the first is the text encoder's; no weight
    is 1. Names may hold spaces and dots. A malformed tag, or one name twice, is an error.
    """
    tags: dict[str, LoraTag] = {}
    for match in _TAG.finditer(text):
        tag = _parse_tag(match.group(0), match.group(1))
        if tag.name in tags:
            raise ComposerError(
                f"The prompt asks for the LoRA {tag.name!r} twice. Keep one of its tags."
            )
        tags[tag.name] = tag
        if len(tags) > MAX_LORAS:
            raise ComposerError(
                f"The prompt asks for more than {MAX_LORAS} LoRAs. Take some of them out."
            )
    without = _TAG.sub("", text)
    if broken := _OPENING.search(without):
        raise ComposerError(
            f"The tag {broken.group(0).strip()!r} in the prompt is not complete. Write {_FORMS}."
        )
    return ParsedPrompt(text=_tidy(without) if tags else text, loras=tuple(tags.values()))


def _parse_tag(tag: str, inside: str) -> LoraTag:
    name, *arguments = (part.strip() for part in inside.split(":"))
    if not name:
        raise ComposerError(f"The tag {tag!r} in the prompt names no LoRA. Write {_FORMS}.")
    positional = [_weight(tag, a) for a in arguments if "=" not in a]
    named: dict[str, float] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            continue
        if key.strip() not in ("te", "unet"):
            raise ComposerError(
                f"The tag {tag!r} in the prompt has {argument!r}, which is not known here. "
                f"Write {_FORMS}."
            )
        named[key.strip()] = _weight(tag, value)
    if len(positional) > 2:
        raise ComposerError(f"The tag {tag!r} in the prompt has too many weights. Write {_FORMS}.")
    text_encoder = named.get("te", positional[0] if positional else 1.0)
    unet = named.get("unet", positional[1] if len(positional) == 2 else text_encoder)
    return LoraTag(name=name, unet=unet, text_encoder=text_encoder)


def _weight(tag: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ComposerError(
            f"The tag {tag!r} in the prompt has {text!r} where a number is needed. Write {_FORMS}."
        )
    return weight


def _tidy(text: str) -> str:
    """Close the gaps that removed tags leave: double spaces, doubled and dangling commas."""
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" +([,\n])", r"\1", text)
    text = re.sub(r",(?: ?,)+", ",", text)
    lines = (line.strip(" ") for line in text.strip(" ,\n").split("\n"))
    return "\n".join(lines)
