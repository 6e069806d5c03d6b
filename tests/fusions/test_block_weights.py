"""What each number of a string of block weights stands for, and that it holds there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from composer.diffusion.load import load_model
from composer.errors import ComposerError
from composer.experts import LowRank, ModuleNames
from composer.experts.sgm import sgm_names
from composer.families import SDXL, STABLE_DIFFUSION_1, STABLE_DIFFUSION_2, Family
from composer.fusions import LoraRow, with_blocks
from composer.fusions.rows import limit
from composer.mixture import attach

# Of the original code's blocks, what diffusers calls the resnet or sampler in them. SD 1.x and 2.x:
BOTH = {
    "IN00": "conv_in",
    "IN01": "down_blocks.0.resnets.0",
    "IN02": "down_blocks.0.resnets.1",
    "IN03": "down_blocks.0.downsamplers.0",
    "IN04": "down_blocks.1.resnets.0",
    "IN05": "down_blocks.1.resnets.1",
    "IN06": "down_blocks.1.downsamplers.0",
    "IN07": "down_blocks.2.resnets.0",
    "IN08": "down_blocks.2.resnets.1",
    "M00": "mid_block",
    "OUT00": "up_blocks.0.resnets.0",
    "OUT01": "up_blocks.0.resnets.1",
    "OUT02": "up_blocks.0.resnets.2 up_blocks.0.upsamplers.0",
    "OUT03": "up_blocks.1.resnets.0",
    "OUT04": "up_blocks.1.resnets.1",
    "OUT05": "up_blocks.1.resnets.2 up_blocks.1.upsamplers.0",
    "OUT06": "up_blocks.2.resnets.0",
    "OUT07": "up_blocks.2.resnets.1",
    "OUT08": "up_blocks.2.resnets.2",
}
OF_SD1 = BOTH | {
    "IN09": "down_blocks.2.downsamplers.0",
    "IN10": "down_blocks.3.resnets.0",
    "IN11": "down_blocks.3.resnets.1",
    "OUT08": "up_blocks.2.resnets.2 up_blocks.2.upsamplers.0",
    "OUT09": "up_blocks.3.resnets.0",
    "OUT10": "up_blocks.3.resnets.1",
    "OUT11": "up_blocks.3.resnets.2",
}
ORDER = {
    12: "IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
    17: "IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
    20: "IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 M00 "
    "OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08",
    26: "IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 IN09 IN10 IN11 M00 "
    "OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
}


@pytest.mark.parametrize(
    ("family", "count", "meant"),
    [
        (STABLE_DIFFUSION_1, 17, OF_SD1),
        (STABLE_DIFFUSION_1, 26, OF_SD1),
        (STABLE_DIFFUSION_2, 26, OF_SD1),
        (SDXL, 12, BOTH),
        (SDXL, 20, BOTH),
    ],
)
def test_positions(family: Family, count: int, meant: dict[str, str]) -> None:
    base, *blocks = family.layouts[count]
    assert base == family.parts[1:]
    for name, places in zip(ORDER[count].split(), blocks, strict=True):
        wanted = [f"unet.{place}" for place in meant[name].split()]
        assert [place for place in places if ".attentions." not in place] == wanted
        beside = [place.replace("resnets", "attentions") for place in wanted if "resnets" in place]
        assert [place for place in places if ".attentions." in place] == beside


@pytest.mark.parametrize("family", [STABLE_DIFFUSION_1, SDXL], ids=["sd1", "sdxl"])
def test_numbers_are_those_of_the_original_code(family: Family) -> None:
    """Every resnet, attention and sampler is in the block that it has in the original code."""
    kinds = ("resnets.0.conv1", "resnets.1.conv1", "resnets.2.conv1")
    names = ["conv_in", "mid_block.resnets.0.conv1", "mid_block.attentions.0.proj_in"]
    for side, attends in zip(("down", "up"), family.attention, strict=True):
        for stage in range(family.stages):
            inside = list(kinds[: 2 if side == "down" else 3])
            if stage in attends:
                inside += [k.replace("resnets", "attentions").replace("conv1", "q") for k in inside]
            if stage < family.stages - 1:
                inside.append(f"{side}samplers.0.conv")
            names += [f"{side}_blocks.{stage}.{kind}" for kind in inside]
    _, *blocks = family.layouts[max(family.layouts)]
    numbered = dict(zip(ORDER[max(family.layouts)].split(), blocks, strict=True))
    spelled = {"input_blocks": "IN", "output_blocks": "OUT"}
    for name, original in sgm_names(names).items():
        block, number, *_ = original.split(".")
        label = f"{spelled[block]}{int(number):02}" if block in spelled else "M00"
        (found,) = [
            key
            for key, places in numbered.items()
            if any(f"unet.{name}.".startswith(f"{place}.") for place in places)
        ]
        assert found == label


def test_each_number_holds_in_its_block_and_nowhere_else(tiny_sd: Path) -> None:
    """26 other numbers are the LoRA with every site scaled by the number of its block."""
    model = load_model(tiny_sd)
    generator = torch.Generator().manual_seed(0)
    kinds = ("to_q", "to_k", "proj_in", "conv1", "conv_shortcut", "samplers.0.conv")
    sites: dict[str, LowRank] = {}
    for name, (out, *ins) in ModuleNames.of(model.models, model="tiny").shapes["unet"].items():
        if name.endswith(kinds):
            ones = (1 for _ in ins[1:])
            sites[f"unet.{name}"] = LowRank(
                down=torch.randn(2, *ins, generator=generator),
                up=torch.randn(out, 2, *ones, generator=generator) / 20,
                scale=1.0,
            )
    numbers = [0.1 * n - 0.4 for n in range(26)]
    (row,), pins = with_blocks([LoraRow(name="a", weight=0.5)], {"a": numbers})
    assert row.text_encoder == pytest.approx(-0.2)
    number_of = {
        f"{place}.": number
        for places, number in zip(STABLE_DIFFUSION_1.layouts[26], numbers, strict=True)
        for place in places
    }
    scaled: dict[str, LowRank] = {}
    met: set[float] = set()
    for site, low in sites.items():
        (number,) = [number for place, number in number_of.items() if site.startswith(place)]
        scaled[site] = replace(low, scale=0.5 * number)
        met.add(number)
    assert met >= {numbers[place] for place in (2, 4, 5, 13, 14, 15, 16, 17, 18)}

    def predict() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(1, 4, 8, 8, generator=generator)
        text = torch.randn(1, 5, 32, generator=generator)
        with torch.no_grad():
            return cast(Any, model.unet)(latents, 7, text).sample

    with attach(model.models, {"a": scaled}):
        wanted = predict()
    with attach(model.models, {"a": sites}, granularity="block") as mixture:
        mixture.set_weights({"a": 0.5})
        whole = predict()
        limit(mixture, {}, pins)
        torch.testing.assert_close(predict(), wanted, rtol=1e-3, atol=1e-4)
    assert (wanted - whole).abs().max() > 0.01


def test_the_first_convolution_has_no_weights_of_its_own(tiny_sd: Path) -> None:
    model = load_model(tiny_sd)
    low = LowRank(down=torch.ones(1, 4, 3, 3), up=torch.ones(32, 1, 1, 1), scale=1.0)
    rows = [LoraRow(name="a")]
    with attach(model.models, {"a": {"unet.conv_in": low}}, granularity="block") as mixture:
        limit(mixture, {}, with_blocks(rows, {"a": [1, 1, *[0] * 24]})[1])
        with pytest.raises(ComposerError, match="for conv_in, which these LoRAs change"):
            limit(mixture, {}, with_blocks(rows, {"a": [1, 0.5, *[0] * 24]})[1])
