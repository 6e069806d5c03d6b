"""The text that A1111 writes into pictures, which other programs and Civitai read.

Lines of the prompt, then ``Negative prompt: ...``, then one line of ``Key: value`` pairs; values
with commas, colons or newlines are JSON strings.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from composer import __version__
from composer.diffusion.prompt import LoraTag, parse_prompt
from composer.diffusion.record import LoraRecord, PictureRecord
from composer.diffusion.request import Request
from composer.diffusion.samplers import AUTOMATIC, find_sampler, split_sampler
from composer.errors import ComposerError
from composer.fusions import PLAIN, RECIPES
from composer.outside import parse_json

_NEGATIVE = "Negative prompt:"
_NO_KEY = re.compile(r"[^\w \-/]")
_SPACE = re.compile(r"\s*")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])+"(?=,|$)')
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
_TYPES: dict[str, Callable[[str], object]] = {"cfg_scale": float}
_LEAST_PAIRS = 3
_OTHER_NAMES = {"PLMS": "PNDM", "Euler A": "Euler a"}


def to_parameters(record: PictureRecord) -> str:
    """The A1111 text of ``record``: its prompt carries a tag for each LoRA that was used."""
    request = record.request
    tags = [
        str(LoraTag(name=lora.name, unet=lora.unet, text_encoder=lora.text_encoder))
        for lora in record.loras
    ]
    lines = [" ".join([parse_prompt(request.prompt).text, *tags]).strip()]
    if request.negative_prompt:
        lines.append(f"{_NEGATIVE} {request.negative_prompt}")
    pairs: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": request.schedule,
        "CFG scale": f"{request.cfg_scale:g}",
        "Seed": request.seed,
    }
    if request.schedule == AUTOMATIC:  # elsewhere that is the sampler's usual one, here the model's
        del pairs["Schedule type"]
    if request.width is not None and request.height is not None:
        pairs["Size"] = f"{request.width}x{request.height}"
    if record.model_hash:
        pairs["Model hash"] = record.model_hash[:10]
    if record.model_name:
        pairs["Model"] = record.model_name
    if request.clip_skip > 1:
        pairs["Clip skip"] = request.clip_skip
    if hashed := [lora for lora in record.loras if lora.tensor_hash]:
        pairs["Lora hashes"] = ", ".join(f"{lora.name}: {lora.tensor_hash[:12]}" for lora in hashed)
    pairs["Fusion"] = record.fusion["name"]
    own = _file_pairs(record.fusion["name"])
    pairs |= {key: record.fusion[name] for key, name in own.items() if name in record.fusion}
    pairs["Version"] = f"composer {record.version}"
    lines.append(", ".join(f"{key}: {_quote(str(value))}" for key, value in pairs.items()))
    return "\n".join(lines)


def from_parameters(text: str) -> PictureRecord:
    """The record in an A1111 text of any program; what we cannot do becomes a note."""
    lines = text.strip().split("\n")
    pairs = {key: _unquote(value) for key, value in read_pairs(lines[-1])}
    if len(pairs) < _LEAST_PAIRS:
        raise ComposerError(
            "The picture's text does not say how it was made: its last line holds no settings such "
            "as 'Steps: 20, Sampler: Euler, Seed: 1'. Use the file the program saved, not a copy."
        )
    prompt, _, negative = "\n".join(lines[:-1]).partition(_NEGATIVE)
    notes: list[str] = []
    settings: dict[str, Any] = {"negative_prompt": negative.strip()}
    prompt = prompt.strip()
    loras: tuple[LoraRecord, ...] = ()
    try:
        parsed = parse_prompt(prompt)
        hashes: dict[str, str] = {}
        for pair in pairs.get("Lora hashes", "").split(","):
            name, _, digits = pair.partition(":")
            hashes[name.strip()] = digits.strip()
        loras = tuple(
            LoraRecord(
                name=tag.name,
                unet=tag.unet,
                text_encoder=tag.text_encoder,
                tensor_hash=hashes.get(tag.name, ""),
            )
            for tag in parsed.loras
        )
        # The tags live in `loras` from here on; kept in both places they would count twice.
        prompt = parsed.text
    except ComposerError as error:
        notes.append(str(error))
    settings["prompt"] = prompt
    settings.update(_read_settings(pairs, notes))
    fusion = {"name": pairs.get("Fusion", PLAIN[0].kind)}
    own = _file_pairs(fusion["name"])
    fusion |= {name: pairs[key] for key, name in own.items() if key in pairs}
    return PictureRecord(
        request=Request(**settings),
        loras=loras,
        fusion=fusion,
        model_name=pairs.get("Model", ""),
        model_hash=pairs.get("Model hash", ""),
        version=pairs.get("Version", "").removeprefix("composer ") or __version__,
        notes=tuple(notes),
    )


def _file_pairs(fusion: object) -> dict[str, str]:
    """By the key of a pair what it says of a fusion's own file, by its name in the record."""
    kind = RECIPES.get(str(fusion))
    if kind is None or not kind.source:
        return {}
    return {kind.called: kind.source, f"{kind.called} hash": "hash"}


def read_pairs(line: str) -> Iterator[tuple[str, str]]:
    """The `Key: value` pairs of A1111's last line, values as they are written there.

    The same pairs as A1111's own expression finds, which tries every beginning of a key that never
    ends; here each character is looked at a few times at most.
    """
    place = 0
    while (colon := line.find(":", place)) >= 0:
        key = _NO_KEY.split(line[place:colon])[-1].lstrip(" -/")
        begin = place = colon + 1
        if len(key) < 2:
            continue
        if space := _SPACE.match(line, begin):
            begin = space.end()
        if quoted := _QUOTED.match(line, begin):
            end = quoted.end()
        elif (end := line.find(",", begin)) < 0:
            end = len(line)
        yield key, line[begin:end]
        place = end + 1


def _read_settings(pairs: dict[str, str], notes: list[str]) -> dict[str, Any]:
    """Those of the pairs that a request takes, each tried alone."""
    found: dict[str, str] = {}
    taken: dict[str, Any] = {}
    if sampler := pairs.get("Sampler"):
        taken |= _sampler(sampler, pairs.get("Schedule type", ""), notes)
    numbers = {"steps": "Steps", "seed": "Seed", "clip_skip": "Clip skip", "cfg_scale": "CFG scale"}
    for name, key in numbers.items():
        if key in pairs:
            found[name] = pairs[key]
    if size := _SIZE.fullmatch(pairs.get("Size", "")):
        found["width"], found["height"] = size.groups()
    defaults = {field.name: field.default for field in dataclasses.fields(Request)}
    for name, value in found.items():
        try:
            settings: dict[str, Any] = {name: _TYPES.get(name, int)(value)}
            Request(**settings)
        except ComposerError as error:
            notes.append(f"{error} {name} {defaults[name]!r} is used instead.")
        except ValueError:
            notes.append(
                f"{name} {value[:40]!r} is not a number; {defaults[name]!r} is used instead."
            )
        else:
            taken.update(settings)
    return taken


def _sampler(name: str, schedule: str, notes: list[str]) -> dict[str, Any]:
    """Our sampler and schedule for A1111's, which were one name before its version 1.9."""
    name, within = split_sampler(_OTHER_NAMES.get(name, name))
    try:
        sampler = find_sampler(name)
    except ComposerError as error:
        notes.append(f"{error} sampler {Request().sampler!r} is used instead.")
        return {}
    wanted = sampler.usual if schedule == AUTOMATIC else schedule or within
    try:
        find_sampler(name, wanted)
    except ComposerError as error:
        notes.append(f"{error} The model's own is used instead.")
        wanted = AUTOMATIC
    return {"sampler": name, "schedule": wanted}


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _unquote(value: str) -> str:
    if not value.startswith('"'):
        return value.strip()
    try:
        return str(parse_json(value))
    except ValueError:
        return value.strip('"')
