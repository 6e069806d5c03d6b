"""What the tensors of a MixLoRA file are called.

    mixlora.layers.0.mlp.moe_gate.weight                          (experts, width)
    mixlora.layers.0.mlp.up_proj.experts.3.lora_A.weight          (rank, in)
    mixlora.layers.0.mlp.up_proj.experts.3.lora_B.weight          (out, rank)
    mixlora.layers.0.mlp.up_proj.experts.3.lora_magnitude_vector  (out,), ours, with DoRA alone
    mixlora.layers.0.self_attn.q_proj.lora_A.weight               (rank, in)

What lies before a model's `layers` is left out, as the reference does; a model with several lists
of layers, or one that calls them otherwise (T5, a U-Net), has its modules' whole paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from composer.errors import ComposerError
from composer.language.mixlora_config import LEGACY, MixLoraConfig

Thing = TypeVar("Thing")

PREFIX = "mixlora."
FACTORS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
"""By the name of a parameter of `Factors`, what follows in the file."""

ROUTER = "moe_gate.weight"

_LAYERS = re.compile(r"(?:.*\.)?(?=layers\.\d+\.)")
_LEGACY_ROUTER = re.compile(r"(mixlora\.layers\.\d+)\.gate\.weight")
_LEGACY_EXPERT = re.compile(r"(mixlora\.layers\.\d+)\.experts\.(\d+)\.(\w+)\.(lora_[AB]\.weight)")
_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(lora_[AB]\.weight|lora_magnitude_vector)")


def short_paths(paths: Iterable[str]) -> dict[str, str]:
    """By path of a module what a file calls it, without what lies before the model's layers."""
    paths = list(paths)
    heads = {found.group() if (found := _LAYERS.match(path)) else None for path in paths}
    head = heads.pop() if len(heads) == 1 else None
    return {path: path.removeprefix(head or "") for path in paths}


def modern(named: Mapping[str, Thing]) -> dict[str, Thing]:
    """The same tensors, or their shapes, by today's names."""
    return {_modern(name): thing for name, thing in named.items()}


def _modern(name: str) -> str:
    if router := _LEGACY_ROUTER.fullmatch(name):
        return f"{router[1]}.mlp.{ROUTER}"
    if expert := _LEGACY_EXPERT.fullmatch(name):
        layer, number, linear, end = expert.groups()
        return f"{layer}.mlp.{LEGACY.get(linear, linear)}.experts.{number}.{end}"
    return name


def check_against_config(
    shapes: Mapping[str, tuple[int, ...]], config: MixLoraConfig, path: Path
) -> None:
    """Refuse a file whose tensors are not those its settings speak of; only shapes are looked at.

    Raises:
        ComposerError: an expert or a factor is missing, or has another rank or number.
    """
    experts = config.router.experts
    routers = [name for name in shapes if name.endswith(f".{ROUTER}")]
    if not routers:
        raise ComposerError(
            f"{path}: has no router (no tensor ends in {ROUTER}). It is no MixLoRA adapter, or was "
            "not saved whole: download or train it again."
        )
    if experts > len(shapes) or any(0 in shape for shape in shapes.values()):
        # before anything is counted by a number that a stranger chose
        raise ComposerError(
            f"{path}: has {len(shapes)} tensors, some perhaps empty, and adapter_config.json tells "
            f"of {experts} experts. The two files do not belong together: download both again."
        )
    for name in routers:
        if len(shapes[name]) != 2 or shapes[name][0] != experts:
            raise ComposerError(
                f"{path}: {name} has the shape {shapes[name]}, and adapter_config.json tells of "
                f"{experts} experts. The two files do not belong together: download both again."
            )
    stems: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        if name in routers:
            continue
        stem, _, end = name.rpartition(".lora_")
        expert = _EXPERT.fullmatch(name)
        lora = config.experts if expert else config.attention
        known = stem.startswith(PREFIX) and f"lora_{end}" in FACTORS.values()
        if not known or lora is None or (expert and int(expert[2]) >= experts):
            raise ComposerError(
                f"{path}: has a tensor {name!r}, of which adapter_config.json does not tell. "
                "Choose an adapter that was saved by MoE-PEFT, the package mixlora or Composer."
            )
        rank = {"A.weight": shape[:1], "B.weight": shape[1:]}.get(end, (lora.rank,))
        if rank != (lora.rank,):
            raise ComposerError(
                f"{path}: {name} has the shape {shape}, and adapter_config.json tells of rank "
                f"{lora.rank}. The two files do not belong together: download both again."
            )
        if expert:
            for number in range(experts):
                stems.setdefault(f"{expert[1]}.experts.{number}", set())
        stems.setdefault(stem, set()).add(f"lora_{end}")
    for stem, ends in stems.items():
        for end in sorted(_needed(config, expert=".experts." in stem) - ends):
            raise ComposerError(
                f"{path}: {stem}.{end} is missing. The file was not saved or downloaded whole: "
                "get it again."
            )


def _needed(config: MixLoraConfig, *, expert: bool) -> set[str]:
    lora = config.experts if expert else config.attention
    dora = lora is not None and lora.dora
    return {end for key, end in FACTORS.items() if dora or key != "magnitude"}
