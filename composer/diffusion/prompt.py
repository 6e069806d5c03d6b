"""LoRA tags in a prompt: ``<lora:name:weight>`` as in A1111 and its extensions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from composer.errors import ComposerError
from composer.families import FAMILIES
from composer.fusions import BLOCK_PRESETS

MAX_LORAS = 100
"""Of one picture."""

# A1111 reads lyco as lora; the others were those of extensions for files of these kinds.
_KINDS = "lora|lyco|loha|lokr|locon"
_TAG = re.compile(rf"<({_KINDS}|hypernet):([^<>]*)>", re.IGNORECASE)
_OPENING = re.compile(rf"<(?:{_KINDS}|hypernet)\b[^<>]*>?", re.IGNORECASE)
_FORMS = (
    "<lora:name:weight>, <lora:name:text_encoder:unet> or <lora:name:te=0.5:unet=1>, with "
    ":start=5:stop=15 to limit it to these steps and :lbw=1,0,1,... for block weights"
)
_STEP_WEIGHTS = (
    "a weight that changes from step to step is not possible here: give one weight, and start= "
    "and stop= for the steps"
)

Refuse = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LoraTag:
    """One LoRA asked for in a prompt, with its weight in the U-Net and in the text encoder.

    start, stop: the steps, counted from 0, from which and before which it acts; None for no limit.
    blocks: how many times its weight holds in each block of the model's family
        (`Family.layouts`); empty for once everywhere.
    """

    name: str
    unet: float = 1.0
    text_encoder: float = 1.0
    start: float | None = None
    stop: float | None = None
    blocks: tuple[float, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.unet:g}"]
        if self.unet != self.text_encoder:
            parts.insert(0, f"{self.text_encoder:g}")
        limits = {"start": self.start, "stop": self.stop}
        parts += [f"{key}={value:g}" for key, value in limits.items() if value is not None]
        if self.blocks:
            parts.append(f"lbw={','.join(f'{number:g}' for number in self.blocks)}")
        return f"<lora:{self.name}:{':'.join(parts)}>"

    def span(self, steps: int) -> tuple[float, float]:
        """From which part of so many steps to which it acts, 0 to 1."""
        stop = steps if self.stop is None else min(self.stop, steps)
        return (self.start or 0) / steps, stop / steps

    def plus(self, other: LoraTag) -> LoraTag:
        """Both as one: the same LoRA added twice is added with the sum of its weights.

        Raises:
            ComposerError: they have other limits.
        """
        if (self.start, self.stop, self.blocks) != (other.start, other.stop, other.blocks):
            raise ComposerError(
                f"The prompt asks for the LoRA {self.name!r} twice with other limits, which cannot "
                "be added up. Keep one of its tags."
            )
        unet, text_encoder = self.unet + other.unet, self.text_encoder + other.text_encoder
        return replace(self, unet=unet, text_encoder=text_encoder)


@dataclass(frozen=True, kw_only=True)
class ParsedPrompt:
    """A prompt without its tags, and the tags in their order."""

    text: str
    loras: tuple[LoraTag, ...] = ()


def parse_prompt(text: str, notes: list[str] | None = None) -> ParsedPrompt:
    """Split ``text`` into the words for the text encoder and its LoRA tags.

    As in A1111, one weight is for both parts, and of two the first is the text encoder's; no weight
    is 1. Names may hold spaces and dots. What is malformed or cannot be done is an error; with
    ``notes`` it is noted there and left out.
    """

    def refuse(message: str) -> None:
        if notes is None:
            raise ComposerError(message)
        notes.append(message)

    tags: dict[str, LoraTag] = {}
    for match in _TAG.finditer(text):
        tag = _parse_tag(match[0], match[1], match[2], refuse)
        if tag is None:
            continue
        if len(tags) == MAX_LORAS and tag.name not in tags:
            refuse(f"The prompt asks for more than {MAX_LORAS} LoRAs. Take some of them out.")
            break
        try:
            tags[tag.name] = tags[tag.name].plus(tag) if tag.name in tags else tag
        except ComposerError as error:
            refuse(str(error))
    without, count = _TAG.subn("", text)
    if broken := _OPENING.search(without):
        refuse(f"The tag {broken[0].strip()!r} in the prompt is not complete. Write {_FORMS}.")
        without, cut = _OPENING.subn("", without)
        count += cut
    return ParsedPrompt(text=_tidy(without) if count else text, loras=tuple(tags.values()))


def parse_negative(text: str) -> str:
    """A negative prompt, which may hold no tags.

    A LoRA acts on the whole picture. A1111 takes tags from the prompt alone, and has the text
    encoder read those of the negative prompt as letters.

    Raises:
        ComposerError: it holds one.
    """
    parsed = parse_prompt(text)
    if parsed.loras:
        raise ComposerError(
            f"The negative prompt holds the tag {str(parsed.loras[0])!r}: a LoRA acts on the whole "
            "picture, so tags count in the prompt alone. Move it there, with a weight below 0 to "
            "keep out what it teaches, or take it out."
        )
    return parsed.text


def _parse_tag(tag: str, kind: str, inside: str, refuse: Refuse) -> LoraTag | None:
    """The tag as far as it can be done; None if nothing of it can."""
    name, *arguments = (part.strip() for part in inside.split(":"))
    if kind.lower() == "hypernet":
        refuse(f"The tag {tag!r} in the prompt names a hypernetwork, which Composer does not read.")
        return None
    if not name:
        refuse(f"The tag {tag!r} in the prompt names no LoRA. Write {_FORMS}.")
        return None
    weights: list[float] = []
    named: dict[str, float] = {}
    blocks: tuple[float, ...] = ()
    for argument in arguments:
        key, equals, value = (part.strip() for part in argument.partition("="))
        try:
            if not equals and "," in argument and "@" not in argument:
                blocks = _blocks(argument)
            elif not equals:
                weights.append(_weight(argument))
            elif key in ("te", "unet"):
                named[key] = _weight(value)
            elif key in ("start", "stop"):
                named[key] = _number(value)
            elif key == "step":
                start, _, stop = value.partition("-")
                named |= {"start": _number(start), "stop": _number(stop)}
            elif key == "lbw":
                blocks = _blocks(value)
            else:
                raise ValueError(f"{argument!r}, which is not known here")
        except ValueError as error:
            refuse(f"The tag {tag!r} in the prompt has {error}. Write {_FORMS}.")
    if len(weights) > 2:
        refuse(f"The tag {tag!r} in the prompt has too many weights. Write {_FORMS}.")
    text_encoder = named.get("te", weights[0] if weights else 1.0)
    unet = named.get("unet", weights[1] if len(weights) >= 2 else text_encoder)
    limits = {key: named[key] for key in ("start", "stop") if key in named}
    return LoraTag(name=name, unet=unet, text_encoder=text_encoder, blocks=blocks, **limits)


def _weight(text: str) -> float:
    """A number, or one number for all steps, as `1@0,1@0.5`."""
    weights = {_number(part.partition("@")[0]) for part in re.split("[,;]", text)}
    if len(weights) > 1:
        raise ValueError(f"{text!r}, and {_STEP_WEIGHTS}")
    return weights.pop()


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} where a number is needed")
    return number


def _blocks(text: str) -> tuple[float, ...]:
    """Block weights: as many numbers as there are blocks, or the name of usual ones, before which
    the Inspire Pack of ComfyUI writes SD-."""
    if (name := text.upper().removeprefix("SD-")) in BLOCK_PRESETS:
        return BLOCK_PRESETS[name]
    numbers = text.split(",")
    if not any(len(numbers) in family.layouts for family in FAMILIES):
        known = (f"{' or '.join(map(str, family.layouts))} ({family.name})" for family in FAMILIES)
        raise ValueError(
            f"block weights {text[:80]!r}, which are neither numbers, {', '.join(known)}, nor one "
            f"of {', '.join(BLOCK_PRESETS)}"
        )
    return tuple(map(_number, numbers))


def _tidy(text: str) -> str:
    """Close the gaps that removed tags leave: double spaces, doubled and dangling commas."""
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" +([,\n])", r"\1", text)
    text = re.sub(r",(?: ?,)+", ",", text)
    lines = (line.strip(" ") for line in text.strip(" ,\n").split("\n"))
    return "\n".join(lines)
