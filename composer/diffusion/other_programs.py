"""What other programs than A1111 write into pictures: JSON of their settings, or a graph of nodes.

ComfyUI writes the graph that it ran under `prompt`, InvokeAI its settings under
`invokeai_metadata`; SwarmUI and Fooocus write theirs where A1111 writes its text. All become pairs
by A1111's keys, and what has none keeps its own, so that a note names it.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from composer.diffusion.parameters import from_parameters, hash_digits, to_record
from composer.diffusion.record import LoraRecord, PictureRecord
from composer.errors import ComposerError
from composer.outside import parse_object

PARAMETERS = "parameters"
Json = dict[str, Any]
_MOST_LINKS = 8  # from an input to the node that holds its value

_WORDS = ("text", "value", "string", "prompt", "text_g", "wildcard_text", "populated_text")
_NUMBER = ("value", "seed", "noise_seed", "int", "number", "float")
# Nodes of ComfyUI that are taken over, or change nothing here.
_TAKEN = re.compile(
    "KSampler.*|SamplerCustom.*|BasicScheduler|.*Scheduler|RandomNoise|CFGGuider|BasicGuider|"
    "Checkpoint.*Loader.*|.*L[oO][rR][aA].*|CLIPTextEncode|CLIPSetLastLayer|VAEDecode.*|"
    "Empty.*Latent.*|SaveImage.*|Save Image|PreviewImage|Primitive.*|Reroute|Note|Seed.*|String.*"
)
_SWARM = {
    "seed": "Seed",
    "steps": "Steps",
    "cfgscale": "CFG scale",
    "sampler": "Sampler",
    "scheduler": "Schedule type",
    "model": "Model",
}
_FOOOCUS = {
    "seed": "Seed",
    "steps": "Steps",
    "guidance_scale": "CFG scale",
    "sampler": "Sampler",
    "scheduler": "Schedule type",
    "base_model": "Model",
    "base_model_hash": "Model hash",
    "clip_skip": "Clip skip",
    "resolution": "Size",
}
_INVOKE = {
    "seed": "Seed",
    "steps": "Steps",
    "cfg_scale": "CFG scale",
    "scheduler": "Sampler",
    "clip_skip": "Clip skip",
}


def from_texts(texts: Mapping[str, str]) -> PictureRecord | None:
    """The record in a picture's texts, by their keys; None if none of them is known.

    Raises:
        ComposerError: a text is damaged, or does not say how the picture was made.
    """
    parameters = texts.get(PARAMETERS, "").strip()
    if "invokeai_metadata" in texts:
        return _invoke(_object(texts, "invokeai_metadata"))
    if parameters.startswith("{"):
        values = _object(texts, PARAMETERS)
        if "sui_image_params" in values:
            return _swarm(values)
        if any("class_type" in node for _, node in _nodes(values)):  # a JPEG of Civitai
            return _comfy(values)
        return _fooocus(values)
    if parameters:
        return from_parameters(parameters)
    if "prompt" in texts:
        return _comfy(_object(texts, "prompt"))
    if "workflow" in texts:
        raise ComposerError(
            "The picture holds a ComfyUI workflow and not the graph that ran, which says the "
            "settings by name. Load it in ComfyUI, make the picture again and use that file."
        )
    return None


def _object(texts: Mapping[str, str], key: str) -> Json:
    try:
        return parse_object(texts[key])
    except ValueError as error:
        raise ComposerError(
            f"The picture's text {key!r} cannot be read ({error}). Use a picture that was not "
            "edited."
        ) from error


# --- programs that write their settings


def _swarm(values: Json) -> PictureRecord:
    given = _mapping(values.get("sui_image_params"))
    prompt, negative = str(given.pop("prompt", "")), str(given.pop("negativeprompt", ""))
    names, weights, texts = (
        _list(given.pop(key, ())) for key in ("loras", "loraweights", "loratencweights")
    )
    models = [_mapping(each) for each in _list(values.get("sui_models"))]
    digits = {_bare(each.get("name")): str(each.get("hash", "")) for each in models}
    loras = [
        _lora(name, _at(weights, place), _at(texts, place), digits.get(_bare(name), ""))
        for place, name in enumerate(names)
    ]
    pairs = _renamed(
        given, _SWARM, neutral=("swarm_version", "images", "aspectratio", "resolution")
    )
    pairs["Size"] = f"{pairs.pop('width', '')}x{pairs.pop('height', '')}".strip("x")
    if layer := pairs.pop("clipstopatlayer", ""):
        pairs["Clip skip"] = layer.lstrip("-")
    pairs["Model hash"] = digits.get(_bare(pairs.get("Model")), "")
    return _record(prompt, negative, pairs, loras)


def _fooocus(values: Json) -> PictureRecord:
    values = {**values}
    prompt, negative = str(values.pop("prompt", "")), str(values.pop("negative_prompt", ""))
    loras = [
        _lora(*(_at(_list(each), place) for place in (0, 1, 1, 2)))
        for each in _list(values.pop("loras", ()))
    ]
    values = {key: value for key, value in values.items() if not key.startswith("lora_combined_")}
    neutral = ("version", "created_by", "metadata_scheme", "full_prompt", "full_negative_prompt")
    pairs = _renamed(values, _FOOOCUS, neutral=neutral)
    pairs["Size"] = pairs.get("Size", "").strip("()").replace(", ", "x")
    return _record(prompt, negative, pairs, loras)


def _invoke(values: Json) -> PictureRecord:
    values = {**values}
    prompt = str(values.pop("positive_prompt", ""))
    negative = str(values.pop("negative_prompt", None) or "")
    loras: list[LoraRecord] = []
    for each in map(_mapping, _list(values.pop("loras", ()))):
        named = _mapping(each.get("model") or each.get("lora"))
        name = named.get("name") or named.get("model_name", "")
        loras.append(_lora(name, each.get("weight"), "", named.get("hash", "")))
    model, vae = (_mapping(values.pop(name, None)) for name in ("model", "vae"))
    if values.get("generation_mode") == "txt2img":
        del values["generation_mode"]
    if values.get("rand_device") == "cpu":
        del values["rand_device"]
    pairs = _renamed(values, _INVOKE, neutral=("app_version",))
    pairs["Size"] = f"{pairs.pop('width', '')}x{pairs.pop('height', '')}".strip("x")
    pairs["Model"] = str(model.get("name") or model.get("model_name", ""))
    pairs["Model hash"] = str(model.get("hash", ""))
    pairs["VAE"] = str(vae.get("name") or vae.get("model_name", ""))
    if pairs.get("Clip skip", "").isdigit():  # counted from 0 there
        pairs["Clip skip"] = str(int(pairs["Clip skip"]) + 1)
    return _record(prompt, negative, pairs, loras, comfy=False)


def _renamed(values: Json, keys: Mapping[str, str], *, neutral: Iterable[str]) -> dict[str, str]:
    """Settings as texts by A1111's keys, but those that are off or empty, or `neutral`."""
    kept = {key: value for key, value in values.items() if key not in neutral}
    return {
        keys.get(key, key): value if isinstance(value, str) else json.dumps(value)
        for key, value in kept.items()
        if value is not None and value is not False and value not in ("", [], {})
    }


# --- ComfyUI


def _comfy(graph: Json) -> PictureRecord:
    nodes = {key: _mapping(node.get("inputs")) for key, node in _nodes(graph)}
    kinds = {key: str(node.get("class_type", "")) for key, node in _nodes(graph)}
    sampler = _first_sampler(nodes, kinds)
    if sampler is None:
        raise ComposerError(
            "The picture's ComfyUI graph has no node that samples, such as KSampler. Use a picture "
            "of a graph with one."
        )
    near = list(_before(nodes, [sampler]))

    def nearest(*names: str) -> str:
        for key in near:
            for name in names:
                if name in nodes[key]:
                    value = _literal(nodes, nodes[key][name], _NUMBER)
                    if value is not None:
                        return str(value)
        return ""

    pairs = {
        "Steps": nearest("steps"),
        "Sampler": nearest("sampler_name"),
        "Schedule type": nearest("scheduler"),
        "CFG scale": nearest("cfg"),
        "Seed": nearest("seed", "noise_seed"),
        "Size": f"{nearest('width')}x{nearest('height')}".strip("x"),
        "Model": nearest("ckpt_name"),
        "Clip skip": nearest("stop_at_clip_layer").lstrip("-"),
        "Denoising strength": nearest("denoise"),
    }
    if pairs["Denoising strength"] in ("1", "1.0"):
        del pairs["Denoising strength"]
    strange = [kind for kind in kinds.values() if not _TAKEN.fullmatch(kind)]
    strange += [kinds[key] for key in nodes if key != sampler and _samples(nodes[key], kinds[key])]
    for kind in dict.fromkeys(strange):
        pairs[f"node {kind}"] = ""
    loras = [lora for key in reversed(near) for lora in _loras_of(nodes[key])]
    # ComfyUI's own text encoding knows round brackets alone: these are letters to it
    prompt, negative = (
        re.sub(r"[\[\]]", r"\\\g<0>", _text(nodes, near, role)) for role in ("positive", "negative")
    )
    return _record(prompt, negative, pairs, loras)


def _nodes(graph: Json) -> Iterator[tuple[str, Json]]:
    for key, node in graph.items():
        if isinstance(node, dict):
            yield key, cast(Json, node)


def _samples(inputs: Json, kind: str) -> bool:
    return kind.startswith("SamplerCustom") or {"sampler_name", "steps"} <= inputs.keys()


def _first_sampler(nodes: Mapping[str, Json], kinds: Mapping[str, str]) -> str | None:
    """The node that samples before all others of its chain, which are a second pass."""
    found = next((key for key in nodes if _samples(nodes[key], kinds[key])), None)
    key, seen = found, set[str]()
    while key is not None and key not in seen:
        seen.add(key)
        if _samples(nodes[key], kinds[key]):
            found = key
        inputs = nodes[key]
        names = ("latent_image", "samples", "latent", "pixels", "image", "images")
        links = [_link(nodes, inputs[name]) for name in names if name in inputs]
        key = next((link for link in links if link is not None), None)
    return found


def _before(nodes: Mapping[str, Json], start: Iterable[str]) -> Iterator[str]:
    """These nodes and all that they come from, the nearest first."""
    waiting = deque(start)
    seen = set(waiting)
    while waiting:
        key = waiting.popleft()
        yield key
        for value in nodes[key].values():
            link = _link(nodes, value)
            if link is not None and link not in seen:
                seen.add(link)
                waiting.append(link)


def _link(nodes: Mapping[str, Json], value: object) -> str | None:
    """The node that an input comes from; None for a value of its own."""
    if isinstance(value, list) and len(cast("list[Any]", value)) == 2:
        key = str(cast("list[Any]", value)[0])
        return key if key in nodes else None
    return None


def _literal(nodes: Mapping[str, Json], value: object, names: Iterable[str]) -> str | float | None:
    """The text or number of an input, also if another node holds it."""
    for _ in range(_MOST_LINKS):
        link = _link(nodes, value)
        if link is None:
            break
        value = next((nodes[link][name] for name in names if name in nodes[link]), None)
    return value if isinstance(value, str | int | float) else None


def _text(nodes: Mapping[str, Json], near: Iterable[str], role: str) -> str:
    """The first text on the way to the sampler's input of that role."""
    start = next((nodes[key][role] for key in near if role in nodes[key]), None)
    link = _link(nodes, start)
    if link is None:
        start = next(
            (nodes[key]["conditioning"] for key in near if "conditioning" in nodes[key]), None
        )
        link = _link(nodes, start) if role == "positive" else None
    if link is None:
        return ""
    # a node that passes both on has both as inputs, and only its own is followed
    own = {
        key: {role: inputs[role]} if role in inputs and _link(nodes, inputs[role]) else inputs
        for key, inputs in nodes.items()
    }
    for key in _before(own, [link]):
        for name in _WORDS:
            if name in nodes[key]:
                value = _literal(nodes, nodes[key][name], _WORDS)
                if isinstance(value, str):
                    return value.strip()
    return ""


def _loras_of(inputs: Json) -> Iterator[LoraRecord]:
    """The LoRAs that one node loads: one, several that are counted, or a list of its own."""
    for key, value in inputs.items():
        if isinstance(value, dict):  # as rgthree's loader has them
            given = cast(Json, value)
            if given.get("lora") and given.get("on", True):
                weight = given.get("strength")
                yield _lora(given["lora"], weight, given.get("strengthTwo") or weight)
        elif key.startswith("lora_name") and isinstance(value, str) and value != "None":
            count = key.removeprefix("lora_name")
            if inputs.get(f"switch{count}") == "Off":
                continue
            unet = _first(inputs, count, "strength_model", "model_weight", "model_str", "strength")
            text = _first(inputs, count, "strength_clip", "clip_weight", "clip_str")
            if unet is None:
                unet = _first(inputs, count, "lora_wt", "lora_weight")
            yield _lora(value, unet, unet if text is None and count else text)


def _first(inputs: Json, count: str, *names: str) -> Any:
    return next((inputs[name + count] for name in names if name + count in inputs), None)


# --- values that anybody may have written


def _record(
    prompt: str,
    negative: str,
    pairs: dict[str, str],
    loras: Iterable[LoraRecord],
    *,
    comfy: bool = True,
) -> PictureRecord:
    """The record of what was read. comfy: names mean what they mean in ComfyUI, which SwarmUI and
    Fooocus are built on: its DDIM is Euler, and its beta is not A1111's."""
    if comfy and pairs.get("Sampler") == "ddim":
        pairs["Sampler"] = "euler"
    if comfy and pairs.get("Schedule type") == "beta":
        pairs["Schedule type"] = "ComfyUI's beta"
    pairs["Model"] = _bare(pairs.get("Model"))
    kept = {key: value for key, value in pairs.items() if value or key.startswith("node ")}
    return to_record(prompt.strip(), negative.strip(), kept, tuple(loras))


def _lora(name: object, unet: object, text: object = "", digits: object = "") -> LoraRecord:
    """A LoRA with the weights that were written, by default the same for the text encoder."""
    weight = _number(unet, 1.0)
    return LoraRecord(
        name=str(name),
        unet=weight,
        text_encoder=_number(text, weight),
        tensor_hash=hash_digits(str(digits)),
    )


def _number(value: object, other: float) -> float:
    try:
        found = float(cast(Any, value))
    except (TypeError, ValueError, OverflowError):
        return other
    return found if abs(found) < float("inf") else other


def _mapping(value: object) -> Json:
    return dict(cast(Json, value)) if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(cast("list[Any]", value)) if isinstance(value, list | tuple) else []


def _at(values: list[Any], place: int) -> Any:
    return values[place] if place < len(values) else ""


def _bare(name: object) -> str:
    """A model's name without the ending of its file."""
    return re.sub(r"\.(safetensors|ckpt)$", "", str(name or ""))
