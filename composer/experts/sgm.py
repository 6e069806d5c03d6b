"""The block numbers of the original Stable Diffusion code (SGM), as SDXL LoRAs spell them.

diffusers counts resnets and attentions within a block; the original code counts through:
`input_blocks.4.1` is `down_blocks.1.attentions.0`. The numbers depend on how many layers each
block has, so they are worked out from the names of the model at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_BLOCK = re.compile(
    r"(?P<prefix>(?P<side>down|up)_blocks\.(?P<block>\d+)|mid_block)\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)"
)


def sgm_names(names: Iterable[str]) -> dict[str, str]:
    """Give every diffusers U-Net module that has one its original name (dotted)."""
    names = tuple(names)
    prefixes = dict(_number_blocks({m[0] for m in map(_BLOCK.match, names) if m}))
    renamed: dict[str, str] = {}
    for name in names:
        match = _BLOCK.match(name)
        if name in _OUTER:
            renamed[name] = _OUTER[name]
        elif match and match[0] in prefixes:  # else the names are not those of a whole model
            rest = name[match.end() + 1 :]
            if match["kind"] == "resnets":
                rest = _RESNET_PARTS.get(rest, rest)
            elif match["kind"] == "downsamplers":
                rest = "op"
            renamed[name] = f"{prefixes[match[0]]}.{rest}"
    return renamed


def _number_blocks(layers: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (`down_blocks.1.attentions.0`, `input_blocks.4.1`) and so on, in the model's order."""

    def count(prefix: str) -> int:
        number = 0
        while f"{prefix}.{number}" in layers:
            number += 1
        return number

    # Input block 0 is conv_in.
    position = 1
    for block in range(_count_blocks(layers, "down_blocks")):
        prefix = f"down_blocks.{block}"
        for layer in range(count(f"{prefix}.resnets")):
            yield f"{prefix}.resnets.{layer}", f"input_blocks.{position}.0"
            yield f"{prefix}.attentions.{layer}", f"input_blocks.{position}.1"
            position += 1
        if f"{prefix}.downsamplers.0" in layers:
            yield f"{prefix}.downsamplers.0", f"input_blocks.{position}.0"
            position += 1

    for layer in range(count("mid_block.resnets")):
        yield f"mid_block.resnets.{layer}", f"middle_block.{2 * layer}"
        yield f"mid_block.attentions.{layer}", f"middle_block.{2 * layer + 1}"

    position = 0
    for block in range(_count_blocks(layers, "up_blocks")):
        prefix = f"up_blocks.{block}"
        resnets = count(f"{prefix}.resnets")
        for layer in range(resnets):
            yield f"{prefix}.resnets.{layer}", f"output_blocks.{position + layer}.0"
            yield f"{prefix}.attentions.{layer}", f"output_blocks.{position + layer}.1"
        position += resnets
        # The upsampler stands in the last output block, after its attention if it has one.
        after = 2 if f"{prefix}.attentions.0" in layers else 1
        yield f"{prefix}.upsamplers.0", f"output_blocks.{position - 1}.{after}"


def _count_blocks(layers: set[str], side: str) -> int:
    return len({name.split(".")[1] for name in layers if name.startswith(f"{side}.")})
