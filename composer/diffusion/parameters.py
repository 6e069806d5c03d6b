"""The text that A1111 writes into pictures, which other programs and Civitai read.

Lines of the prompt, then ``Negative prompt: ...``, then one line of ``Key: value`` pairs; values
with commas, colons or newlines are JSON strings, and some programs write JSON lists and objects.
What others write as JSON alone (`composer.diffusion.other_programs`) comes here as such pairs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, cast

from composer import __version__
from composer.diffusion.prompt import MAX_LORAS, LoraTag, parse_prompt
from composer.diffusion.record import LoraRecord, PictureRecord
from composer.diffusion.request import Request
from composer.diffusion.samplers import AUTOMATIC, SAMPLERS, SCHEDULES, find_sampler, split_sampler
from composer.errors import ComposerError
from composer.fusions import (
    PLAIN,
    RECIPES,
    LoraRow,
    read_recipe,
    recorded_recipe,
    with_blocks,
)
from composer.fusions.rows import ALWAYS, MAX_WEIGHT
from composer.outside import parse_json

Take = Callable[[str], str]
"""Gives the value of a key, once; empty for none."""

_NEGATIVE = "Negative prompt:"
_NO_KEY = re.compile(r"[^\w \-/]")
_SPACE = re.compile(r"\s*")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])+"(?=,|$)')
_IN_JSON = re.compile(r'"(?:\\.|[^\\"])*(?:"|$)|[\[\]{}]')
_SIZE = re.compile(r"(\d{1,6})\s*x\s*(\d{1,6})")
_HASH = re.compile(r"(?:0x|sha256:)?([0-9a-fA-F]{8,64})")
_WITH_HASH = re.compile(r"(.*)\(([0-9a-fA-F]{8,64})\)")
_LEAST_PAIRS = 3
_MOST_AFTER = 4  # lines
_MOST_NAMED, _LONGEST = 40, 60  # things in a note, and characters of each

_NUMBERS = {
    "steps": "Steps",
    "seed": "Seed",
    "clip_skip": "Clip skip",
    "cfg_scale": "CFG scale",
    "strength": "Denoising strength",
    "hires": "Hires upscale",
}
_FRACTIONS = ("cfg_scale", "strength", "hires")
HIRES_UPSCALER = "Lanczos"
"""A1111's name of what enlarges a picture for its second pass."""
# What says nothing of how a picture looks; keys are compared without case, spaces and underscores.
_NEUTRAL = ("Batch size", "Batch pos", "User", "Created Date", "AddNet Enabled")
_NO_VAE = ("automatic", "none")
"""How A1111 calls the model's own."""
_LORA_TYPES = ("lora", "lycoris", "locon", "dora")
# Of LoRAs that are counted from 0 or 1: name, hash, weight in the U-Net and in the text encoder.
_COUNTED = (
    ("Lora_{} Model name", "Lora_{} Model hash", "Lora_{} Strength model", "Lora_{} Strength clip"),
    ("AddNet Model {}", "", "AddNet Weight A {}", "AddNet Weight B {}"),
)
# Names of A1111, ComfyUI and InvokeAI as `_words` has them.
_SAMPLERS = {
    **{name.lower(): name for name in SAMPLERS},
    "plms": "PNDM",
    "euler ancestral": "Euler a",
    "dpm 2": "DPM2",
    "dpm 2 ancestral": "DPM2 a",
    "kdpm 2": "DPM2",
    "kdpm 2 a": "DPM2 a",
    "dpmpp 2m": "DPM++ 2M",
    "dpmpp sde": "DPM++ SDE",
    "dpmpp 2m sde": "DPM++ 2M SDE",
    "uni pc": "UniPC",
}
_SCHEDULES = {**{name.lower(): name for name in SCHEDULES}, "normal": "Uniform"}


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
    if record.start or request.hires > 1:
        pairs["Denoising strength"] = f"{request.strength:g}"
    if request.hires > 1:
        pairs |= {"Hires upscale": f"{request.hires:g}", "Hires upscaler": HIRES_UPSCALER}
    if record.model_hash:
        pairs["Model hash"] = record.model_hash[:10]
    if record.model_name:
        pairs["Model"] = record.model_name
    if record.vae_hash:
        pairs["VAE hash"] = record.vae_hash[:10]
    if record.vae_name:
        pairs["VAE"] = record.vae_name
    if request.clip_skip > 1:
        pairs["Clip skip"] = request.clip_skip
    if hashed := [lora for lora in record.loras if lora.tensor_hash]:
        pairs["Lora hashes"] = ", ".join(f"{lora.name}: {lora.tensor_hash[:12]}" for lora in hashed)
    if record.embeddings:
        known = (f"{name}: {digits[:12]}" for name, digits in record.embeddings.items())
        pairs["TI hashes"] = ", ".join(known)
    recipe = recorded_recipe(record.fusion)
    plain = recipe is not None and not recipe.source
    pairs["Fusion"] = recipe.key if recipe and plain else record.fusion["name"]
    own = _file_pairs(record.fusion["name"])
    pairs |= {key: record.fusion[name] for key, name in own.items() if name in record.fusion}
    pairs["Version"] = f"composer {record.version}"
    lines.append(", ".join(f"{key}: {_quote(str(value))}" for key, value in pairs.items()))
    return "\n".join(lines)


def from_parameters(text: str) -> PictureRecord:
    """The record in an A1111 text of any program; what cannot be done here becomes a note."""
    return to_record(*split_parameters(text))


def split_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt and the pairs of an A1111 text.

    Raises:
        ComposerError: it holds no settings.
    """
    lines = text.strip().split("\n")
    after: list[str] = []  # what extensions write behind the settings
    while len(after) < _MOST_AFTER and not _holds_settings(lines[-1]) and len(lines) > 1:
        after.append(lines.pop())
    pairs = {key: _unquote(value) for key, value in read_pairs(lines[-1])}
    for line in after:
        key, _, value = line.partition(":")
        pairs.setdefault(key.strip(), value.strip())
    if not _holds_settings(lines[-1]):
        raise ComposerError(
            "The picture's text does not say how it was made: its last line holds no settings such "
            "as 'Steps: 20, Sampler: Euler, Seed: 1'. Use the file the program saved, not a copy."
        )
    prompt, _, negative = "\n".join(lines[:-1]).partition(_NEGATIVE)
    return prompt.strip(), negative.strip(), pairs


def _holds_settings(line: str) -> bool:
    return len(dict(read_pairs(line))) >= _LEAST_PAIRS


def to_record(
    prompt: str, negative: str, pairs: Mapping[str, str], loras: Sequence[LoraRecord] = ()
) -> PictureRecord:
    """The record of another program's picture; notes name all that is not taken over.

    pairs: what it says, by A1111's keys where A1111 has one.
    loras: those that it names otherwise than A1111.
    """
    notes: list[str] = []
    left = {_plain(key): (key, value) for key, value in pairs.items()}

    def take(key: str) -> str:
        return left.pop(_plain(key), ("", ""))[1].strip()

    version = take("Version")
    for key in _NEUTRAL:
        take(key)
    if left.get("rng", ("", ""))[1].upper() == "CPU":  # as here
        take("RNG")
    settings: dict[str, Any] = {"negative_prompt": negative, **_read_settings(take, notes)}
    fusion = _read_fusion(take("Fusion"), notes)
    for key, name in _file_pairs(fusion["name"]).items():
        if value := take(key):
            fusion[name] = value
    model, model_hash = take("Model"), take("Model hash")
    vae, vae_hash = take("VAE"), take("VAE hash")
    if vae.lower() in _NO_VAE:
        vae = vae_hash = ""
    hashes, embeddings = _listed(take("Lora hashes")), _listed(take("TI hashes"))
    for key, digits in _entries(take("Hashes")):
        kind, _, name = key.partition(":")
        if kind.lower() == "model":
            model_hash = model_hash or digits
        elif kind.lower() == "lora":
            hashes.setdefault(name, digits)
        elif kind.lower() in ("embed", "embedding"):
            embeddings.setdefault(name, digits)
        elif kind.lower() == "vae":
            vae_hash = vae_hash or digits
        else:
            left[key] = (key, digits)
    # The tags live in `loras` from here on; kept in both places they would count twice.
    parsed = parse_prompt(prompt, notes)
    tags = [
        LoraRecord(name=tag.name, unet=tag.unet, text_encoder=tag.text_encoder)
        for tag in parsed.loras
    ]
    weights = _listed(take("Lora weights"))
    counted = list(_counted(take, notes))
    named = {_file(lora.name) for lora in (*tags, *loras, *counted)}
    beside = [
        LoraRecord(name=name, **_weights(weights.get(name, ""), "", name, notes))
        for name in dict.fromkeys((*weights, *hashes))
        if name and _file(name) not in named
    ]
    found = _added_up((*tags, *loras, *counted, *beside), hashes, notes)
    missing, others = _resources(take("Civitai resources"))
    if len(missing) > len(found):
        notes.append(
            f"{len(missing)} LoRA{'s' * (len(missing) > 1)} of the picture, named by Civitai's "
            f"numbers alone: {_few(missing)}. Get the files there, and choose them."
        )
    left |= {name: ("resource", name) for name in others}
    _limit(fusion, found, parsed.loras, settings.get("steps", Request().steps), notes)
    if left:
        said = _few([f"{key}: {value}" if value else key for key, value in left.values()])
        notes.append(f"Not taken over from the picture, which may look otherwise: {said}.")
    return PictureRecord(
        request=Request(prompt=parsed.text, **settings),
        loras=tuple(found.values()),
        fusion=fusion,
        model_name=model,
        model_hash=hash_digits(model_hash),
        vae_name=vae,
        vae_hash=hash_digits(vae_hash),
        version=version.removeprefix("composer ") or __version__,
        embeddings={_file(name): hash_digits(digits) for name, digits in embeddings.items()},
        notes=tuple(notes),
    )


def _read_fusion(text: str, notes: list[str]) -> dict[str, Any]:
    """The fusion that a line names, with its parameters."""
    kind, colon, _ = text.partition(":")
    if not colon or kind not in RECIPES:
        return {"name": text or PLAIN[0].kind}
    try:
        recipe = read_recipe(text)
    except ComposerError as error:
        notes.append(f"The parameters of the picture's fusion are not understood. {error}")
        return {"name": kind}
    return {"name": kind, **recipe.parameters}


def _file_pairs(fusion: object) -> dict[str, str]:
    """By the key of a pair what it says of a fusion's own file, by its name in the record."""
    kind = RECIPES.get(str(fusion))
    if kind is None or not kind.source:
        return {}
    return {kind.called: kind.source, f"{kind.called} hash": "hash"}


def read_pairs(line: str) -> Iterator[tuple[str, str]]:
    """The `Key: value` pairs of A1111's last line, values as they are written there.

    The same pairs as A1111's own expression finds, which tries every beginning of a key that never
    ends, but that JSON lists and objects are values too; here each character is looked at a few
    times at most.
    """
    place = 0
    closes = True  # whether every list that was begun has ended
    while (colon := line.find(":", place)) >= 0:
        key = _NO_KEY.split(line[place:colon])[-1].lstrip(" -/")
        begin = place = colon + 1
        if len(key) < 2:
            continue
        if space := _SPACE.match(line, begin):
            begin = space.end()
        end = -1
        if closes and line[begin : begin + 1] in ("[", "{"):
            end = _end_of_json(line, begin)
            closes = end >= 0
        if end >= 0:
            pass
        elif quoted := _QUOTED.match(line, begin):
            end = quoted.end()
        elif (end := line.find(",", begin)) < 0:
            end = len(line)
        yield key, line[begin:end]
        place = end + 1


def _end_of_json(line: str, place: int) -> int:
    """Where the list or object ends that begins there; -1 if it does not."""
    depth = 0
    while found := _IN_JSON.search(line, place):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        place = found.end()
        if depth <= 0:
            return place
    return -1


def _read_settings(take: Take, notes: list[str]) -> dict[str, Any]:
    """Those of the pairs that a request takes, each tried alone."""
    taken: dict[str, Any] = {}
    if sampler := take("Sampler"):
        taken |= _sampler(sampler, take("Schedule type"), notes)
    found = {name: value for name, key in _NUMBERS.items() if (value := take(key))}
    if size := take("Size"):
        sides = _SIZE.fullmatch(size)
        found["width"], found["height"] = sides.groups() if sides else (size, size)
    defaults = {field.name: field.default for field in fields(Request)}
    for name, value in found.items():
        try:
            number = float(value) if name in _FRACTIONS else int(value)
            Request(**cast(Any, {name: number}))
        except ComposerError as error:
            notes.append(f"{error} {name} {defaults[name]!r} is used instead.")
        except ValueError:
            notes.append(
                f"{name} {value[:_LONGEST]!r} is not a number; {defaults[name]!r} is used instead."
            )
        else:
            taken[name] = number
    if "hires" in taken:
        steps = take("Hires steps")
        if steps not in ("", "0", str(taken.get("steps", ""))):
            notes.append(f"Its second pass had {steps[:_LONGEST]} steps; here it has as many.")
        upscaler = take("Hires upscaler") or HIRES_UPSCALER
        if upscaler != HIRES_UPSCALER:
            notes.append(
                f"It was enlarged for its second pass by {upscaler[:_LONGEST]!r}; here it is by "
                f"{HIRES_UPSCALER}."
            )
    elif "strength" in taken:
        notes.append(
            "This picture began from another one, which is not in it: give that picture as the "
            "start."
        )
    return taken


def named_sampler(name: str, schedule: str) -> tuple[str, str]:
    """Our names of another program's sampler and schedule, which may be one name; a name that is
    not known stays as it is. "Automatic" is what A1111 means by it: the sampler's usual one."""
    name, within = split_sampler(name)
    words = _words(name)
    if words.endswith(" k"):  # InvokeAI
        words, within = words.removesuffix(" k"), "Karras"
    name = _SAMPLERS.get(words, name)
    wanted = _SCHEDULES.get(_words(schedule), schedule) or AUTOMATIC
    if wanted != AUTOMATIC or within != AUTOMATIC:
        return name, within if wanted == AUTOMATIC else wanted
    return name, SAMPLERS[name].usual if schedule and name in SAMPLERS else AUTOMATIC


def _sampler(name: str, schedule: str, notes: list[str]) -> dict[str, Any]:
    """Our sampler and schedule for another program's."""
    name, wanted = named_sampler(name, schedule)
    try:
        find_sampler(name)
    except ComposerError as error:
        notes.append(f"{error} sampler {Request().sampler!r} is used instead.")
        return {}
    try:
        find_sampler(name, wanted)
    except ComposerError as error:
        notes.append(f"{error} The model's own is used instead.")
        wanted = AUTOMATIC
    return {"sampler": name, "schedule": wanted}


def _counted(take: Take, notes: list[str]) -> Iterator[LoraRecord]:
    """The LoRAs whose keys are counted, as extensions of ComfyUI and A1111 do."""
    for name_key, hash_key, unet_key, text_key in _COUNTED:
        for number in range(MAX_LORAS):
            name = take(name_key.format(number))
            if not name:
                if number:
                    break
                continue
            digits = take(hash_key.format(number)) if hash_key else ""
            if within := _WITH_HASH.fullmatch(name):
                name, digits = within[1], within[2]
            take(f"AddNet Module {number}")
            weights = _weights(
                take(unet_key.format(number)), take(text_key.format(number)), name, notes
            )
            yield LoraRecord(name=name.strip(), tensor_hash=hash_digits(digits), **weights)


def _weights(unet: str, text: str, name: str, notes: list[str]) -> dict[str, Any]:
    """The weights of a LoRA that some text says, the second the first unless it is given."""
    try:
        weight = float(unet)
        weights = {"unet": weight, "text_encoder": float(text) if text else weight}
        if not all(map(math.isfinite, weights.values())):
            raise ValueError
        return weights
    except ValueError:
        notes.append(f"The picture does not say the weight of the LoRA {name!r}: 1 is used.")
        return {"unet": 1.0, "text_encoder": 1.0}


def _added_up(
    loras: Sequence[LoraRecord], hashes: Mapping[str, str], notes: list[str]
) -> dict[str, LoraRecord]:
    """The LoRAs by name, each once with the sum of its weights, and their hashes."""
    found: dict[str, LoraRecord] = {}
    digits = {_file(name): hash_digits(value) for name, value in hashes.items()}
    for lora in loras:
        name = _file(lora.name)
        if name not in found and len(found) == MAX_LORAS:
            notes.append(f"The picture names more LoRAs than {MAX_LORAS}: the others are left out.")
            break
        before = found.get(name, replace(lora, unet=0.0, text_encoder=0.0))
        sums = (before.unet + lora.unet, before.text_encoder + lora.text_encoder)
        unet, text = (min(max(weight, -MAX_WEIGHT), MAX_WEIGHT) for weight in sums)
        if (unet, text) != sums:
            notes.append(f"The LoRA {name!r} has a weight beyond {MAX_WEIGHT:g}: that is used.")
        known = before.tensor_hash or digits.get(name, "")
        found[name] = replace(lora, name=name, unet=unet, text_encoder=text, tensor_hash=known)
    return found


def _limit(
    fusion: dict[str, Any],
    loras: dict[str, LoraRecord],
    tags: Sequence[LoraTag],
    steps: int,
    notes: list[str],
) -> None:
    """Put the tags' steps and block weights into the record of a fusion, as pictures of ours."""
    spans = {_file(tag.name): tag.span(steps) for tag in tags if _file(tag.name) in loras}
    for name, (start, end) in spans.items():
        if not 0 <= start < end <= 1:
            notes.append(f"The LoRA {name!r} is limited to no step at all: its limit is left out.")
        elif (start, end) != ALWAYS:
            fusion.setdefault("steps", {})[name] = [start, end]
    rows = [
        LoraRow(name=lora.name, weight=lora.unet, text_encoder=lora.text_encoder)
        for lora in loras.values()
    ]
    try:
        rows, pins = with_blocks(rows, {_file(tag.name): tag.blocks for tag in tags})
    except ComposerError as error:
        notes.append(f"{error} The block weights are left out.")
        return
    for row in rows:
        loras[row.name] = replace(loras[row.name], text_encoder=row.weights["text_encoder"])
    if pins:
        fusion["pins"] = [str(pin) for pin in pins]


def _resources(text: str) -> tuple[list[str], list[str]]:
    """The LoRAs, and the rest but the model, that Civitai lists by its own numbers."""
    loras: list[str] = []
    others: list[str] = []
    try:
        listed: Any = parse_json(text) if text else []
    except ValueError:
        return loras, [text]
    for entry in cast("list[Any]", listed if isinstance(listed, list) else [listed]):
        if not isinstance(entry, dict):
            others.append(str(entry))
            continue
        said = {str(key): str(value) for key, value in cast("dict[Any, Any]", entry).items()}
        urn = said.get("air", "").split(":")
        kind = said.get("type") or (urn[3] if len(urn) > 3 else "")
        number = said.get("modelVersionId") or urn[-1]
        words = " ".join(filter(None, (said.get("modelName"), said.get("modelVersionName"))))
        weight = f", weight {said['weight']}" if "weight" in said else ""
        shown = f"{words or kind} ({number}{weight})"
        if kind.lower() in _LORA_TYPES:
            loras.append(shown)
        elif kind.lower() != "checkpoint":
            others.append(shown)
    return loras, others


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Of a JSON object of texts; none if it is something else."""
    try:
        found: Any = parse_json(text) if text else {}
    except ValueError:
        return
    if isinstance(found, dict):
        for key, value in cast("dict[str, Any]", found).items():
            yield key, str(value)


def _listed(text: str) -> dict[str, str]:
    """Of a list of `name: value`, where names may hold colons."""
    found: dict[str, str] = {}
    for pair in text.split(","):
        name, colon, value = pair.rpartition(":")
        if colon:
            found[name.strip()] = value.strip()
    return found


def hash_digits(text: str) -> str:
    """The digits of a SHA-256, or its first ones; none of another kind of hash."""
    found = _HASH.fullmatch(text.strip())
    return found[1].lower() if found else ""


def _file(name: str) -> str:
    """A LoRA's name, of the path that some programs write."""
    return name.strip().replace("\\", "/").removesuffix(".safetensors")


def _plain(key: str) -> str:
    return key.casefold().replace(" ", "").replace("_", "")


def _words(name: str) -> str:
    """A sampler's or schedule's name as `_SAMPLERS` has it."""
    words = name.strip().lower().replace("_", " ")
    return words.removeprefix("k ").removesuffix(" gpu")


def _few(things: Sequence[str]) -> str:
    """The names of things for a note, however many and long they are."""
    shown = [t if len(t) <= _LONGEST else f"{t[:_LONGEST]}…" for t in things[:_MOST_NAMED]]
    more = len(things) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _unquote(value: str) -> str:
    if not value.startswith('"'):
        return value.strip()
    try:
        return str(parse_json(value))
    except ValueError:
        return value.strip('"')
