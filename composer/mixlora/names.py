"""What the tensors of a MixLoRA file are called, and what the modules that it changes.

    mixlora.layers.0.mlp.moe_gate.weight                          (experts, width)
    mixlora.layers.0.mlp.up_proj.experts.3.lora_A.weight          (rank, in)
    mixlora.layers.0.mlp.up_proj.experts.3.lora_B.weight          (out, rank)
    mixlora.layers.0.mlp.up_proj.experts.3.lora_magnitude_vector  (out,), ours, with DoRA alone
    mixlora.layers.0.self_attn.q_proj.lora_A.weight               (rank, in)
    mixlora.mid_block.resnets.0.conv1.lora_A.weight               (rank, in, kh, kw)

What lies before a model's `layers` is left out, as the reference does; a model with several lists
of layers, or one that calls them otherwise (T5, a U-Net), has its modules' whole paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from composer.errors import ComposerError
from composer.mixlora.settings import LoraSettings, MixLoraSettings

PREFIX = "mixlora."
FACTORS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
"""By the name of a parameter of `Factors`, what follows in the file."""

ROUTER = "moe_gate.weight"

ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "dense"),
    *("q", "k", "v", "o"),  # T5
    *("to_q", "to_k", "to_v", "to_out.0"),  # diffusers
)
"""What attention's projections are called in the models whose FFNs are known."""

CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
"""What the convolutions of a U-Net's blocks and samplers are called."""

_LAYERS = re.compile(r"(?:.*\.)?(?=layers\.\d+\.)")
_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(lora_[AB]\.weight|lora_magnitude_vector)")


def short_paths(paths: Iterable[str]) -> dict[str, str]:
    """By path of a module what a file calls it, without what lies before the model's layers."""
    paths = list(paths)
    heads = {found.group() if (found := _LAYERS.match(path)) else None for path in paths}
    head = heads.pop() if len(heads) == 1 else None
    return {path: path.removeprefix(head or "") for path in paths}


def check_against_settings(
    shapes: Mapping[str, tuple[int, ...]],
    config: MixLoraSettings,
    path: Path,
    source: str = "adapter_config.json",
) -> None:
    """Refuse a file whose tensors are not those of its settings; only shapes are looked at.

    source: where the settings stand, for messages.

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
            f"{path}: has {len(shapes)} tensors, some perhaps empty, and {source} names "
            f"of {experts} experts. They do not belong together: get both again."
        )
    for name in routers:
        if len(shapes[name]) != 2 or shapes[name][0] != experts:
            raise ComposerError(
                f"{path}: {name} has the shape {shapes[name]}, and {source} names "
                f"{experts} experts. They do not belong together: get both again."
            )
    stems: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        if name in routers:
            continue
        stem, _, end = name.rpartition(".lora_")
        expert = _EXPERT.fullmatch(name)
        lora = config.experts if expert else _plain(stem, config)
        known = stem.startswith(PREFIX) and f"lora_{end}" in FACTORS.values()
        if not known or lora is None or (expert and int(expert[2]) >= experts):
            raise ComposerError(
                f"{path}: has a tensor {name!r}, which {source} does not name. "
                "Choose an adapter that was saved by MoE-PEFT, the package mixlora or Composer."
            )
        rank = {"A.weight": shape[:1], "B.weight": shape[1:]}.get(end, (lora.rank,))
        if rank != (lora.rank,):
            raise ComposerError(
                f"{path}: {name} has the shape {shape}, and {source} names rank "
                f"{lora.rank}. They do not belong together: get both again."
            )
        if expert:
            for number in range(experts):
                stems.setdefault(f"{expert[1]}.experts.{number}", set())
        stems.setdefault(stem, set()).add(f"lora_{end}")
    for stem, ends in stems.items():
        for end in sorted(
            _needed(config.experts if ".experts." in stem else _plain(stem, config)) - ends
        ):
            raise ComposerError(
                f"{path}: {stem}.{end} is missing. The file was not saved or downloaded whole: "
                "get it again."
            )


def _plain(stem: str, config: MixLoraSettings) -> LoraSettings | None:
    """The plain LoRA of a module, by its name."""
    if any(stem.endswith(f".{end}") for end in CONVOLUTIONS):
        return config.convolutions
    return config.attention


def _needed(lora: LoraSettings | None) -> set[str]:
    dora = lora is not None and lora.dora
    return {end for key, end in FACTORS.items() if dora or key != "magnitude"}
