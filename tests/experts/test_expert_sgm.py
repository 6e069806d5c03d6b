"""The original code's block numbers, for the block structures of SD 1.5 and SDXL."""

from __future__ import annotations

import pytest

from composer.experts.sgm import sgm_names

ATTENTION = "transformer_blocks.0.attn2.to_k"


def unet(attention: list[bool], layers: int = 2) -> list[str]:
    """One module's name for each layer of a U-Net whose down blocks attend, or not."""
    names = ["conv_in", "conv_out", "time_embedding.linear_1", "mid_block.resnets.0.conv1"]
    names += ["mid_block.resnets.1.conv2", f"mid_block.attentions.0.{ATTENTION}"]
    blocks = len(attention)
    for side, flags, count in (("down", attention, layers), ("up", attention[::-1], layers + 1)):
        for block, attends in enumerate(flags):
            for layer in range(count):
                names.append(f"{side}_blocks.{block}.resnets.{layer}.conv1")
                if attends:
                    names.append(f"{side}_blocks.{block}.attentions.{layer}.{ATTENTION}")
            if block < blocks - 1:
                names.append(f"{side}_blocks.{block}.{side}samplers.0.conv")
    return names


SD15 = [True, True, True, False]
SDXL = [False, True, True]


@pytest.mark.parametrize(
    ("attention", "name", "original"),
    [
        (SD15, "conv_in", "input_blocks.0.0"),
        (SD15, "conv_out", "out.2"),
        (SD15, "time_embedding.linear_1", "time_embed.0"),
        (SD15, "down_blocks.0.resnets.0.conv1", "input_blocks.1.0.in_layers.2"),
        (SD15, "down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        (SD15, f"down_blocks.2.attentions.1.{ATTENTION}", f"input_blocks.8.1.{ATTENTION}"),
        (SD15, "down_blocks.3.resnets.1.conv1", "input_blocks.11.0.in_layers.2"),
        (SD15, f"mid_block.attentions.0.{ATTENTION}", f"middle_block.1.{ATTENTION}"),
        (SD15, "mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
        (SD15, "up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        (SD15, f"up_blocks.1.attentions.0.{ATTENTION}", f"output_blocks.3.1.{ATTENTION}"),
        (SD15, "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
        (SD15, f"up_blocks.3.attentions.2.{ATTENTION}", f"output_blocks.11.1.{ATTENTION}"),
        (SDXL, f"down_blocks.1.attentions.0.{ATTENTION}", f"input_blocks.4.1.{ATTENTION}"),
        (SDXL, f"down_blocks.2.attentions.1.{ATTENTION}", f"input_blocks.8.1.{ATTENTION}"),
        (SDXL, f"up_blocks.0.attentions.0.{ATTENTION}", f"output_blocks.0.1.{ATTENTION}"),
        (SDXL, "up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        (SDXL, f"up_blocks.1.attentions.2.{ATTENTION}", f"output_blocks.5.1.{ATTENTION}"),
    ],
)
def test_well_known_numbers(attention: list[bool], name: str, original: str) -> None:
    assert sgm_names(unet(attention))[name] == original


@pytest.mark.parametrize("attention", [SD15, SDXL])
def test_every_module_has_its_own_number(attention: list[bool]) -> None:
    names = sgm_names(unet(attention))
    assert len(names) == len(set(names.values())) == len(unet(attention))
