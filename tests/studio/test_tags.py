"""LoRA tags of a prompt become rows and pins."""

from __future__ import annotations

import pytest

from composer.diffusion.request import Request
from composer.errors import ComposerError
from composer.families import FAMILIES, SDXL, STABLE_DIFFUSION_1, STABLE_DIFFUSION_2, Family
from composer.fusions import LoraRow, Normalised, Pin, Recipe, Sum
from composer.fusions.rows import block_units, check_family, pinned
from composer.studio import ComposeRequest


def merged(
    prompt: str, *rows: LoraRow, recipe: Recipe | None = None, negative: str = ""
) -> ComposeRequest:
    request = Request(prompt=prompt, negative_prompt=negative, steps=20)
    asked = ComposeRequest(request=request, rows=rows, recipe=recipe or Sum())
    return asked.merged(lambda name: name.lower())


def test_a_lora_named_twice_counts_once_with_the_sum_of_its_weights() -> None:
    assert merged("a fox <lora:neon:0.5> <lyco:Neon:1:0.25>").rows == (
        LoraRow(name="neon", weight=0.75, text_encoder=1.5),
    )
    with pytest.raises(ComposerError, match="twice with other limits"):
        merged("<lora:neon:0.5> <lora:Neon:0.5:stop=5>")


def test_steps_of_a_tag_rule_over_those_of_its_row() -> None:
    row = LoraRow(name="neon", steps=(0.5, 1.0), depth=(0.0, 0.5))
    (plain,) = merged("<lora:neon:0.8>", row).rows
    assert (plain.weight, plain.steps, plain.depth) == (0.8, (0.5, 1.0), (0.0, 0.5))
    (limited,) = merged("<lora:neon:0.8:start=5:stop=10>", row).rows
    assert (limited.steps, limited.depth) == ((0.25, 0.5), (0.0, 0.5))
    with pytest.raises(ComposerError, match=r"active from 1.5 to 1 of the steps"):
        merged("<lora:neon:0.8:start=30>")


def test_block_weights_become_pins_beside_the_other_loras() -> None:
    tag = "<lora:neon:0.5:1:lbw=0.5,1,0,0,0,0,0,2,0,0,0,0,0,0,0,0,0>"
    asked = merged(f"a fox {tag}", LoraRow(name="zibo", weight=0.7), LoraRow(name="off", on=False))
    rows = {row.name: row.weights for row in asked.rows}
    assert rows["neon"] == {"unet": 1, "text_encoder": 0.25} and rows["zibo"]["text_encoder"] == 0.7
    # in the one left out, all hold as they are; two end with a sampler
    assert len(asked.pins) == 15 + 2
    assert asked.pins[0] == Pin("?down_blocks.0.[ar]*.1", {"zibo": 0.7, "neon": 0.0})
    assert asked.pins[5] == Pin("?mid_block.*", {"zibo": 0.7, "neon": 2.0})
    assert [pin.units for pin in asked.pins[8:10]] == [
        "?up_blocks.1.[ar]*.2",
        "?up_blocks.1.upsamplers.0",
    ]
    assert merged("<lora:neon:1:lbw=ALL>").pins == ()
    with pytest.raises(ComposerError, match=r"'<lora:neon:0.5:1:lbw=.*Normalised sum"):
        merged(tag, recipe=Normalised())


def test_a_block_that_the_lora_leaves_alone_is_no_mistake() -> None:
    units = ["unet.mid_block.attentions.0", "unet.up_blocks.1.resnets.0"]
    assert pinned(Pin("?down_blocks.2.[ar]*.1", {"a": 1}), units) == ()
    assert pinned(Pin("?up_blocks.1.[ar]*.0", {"a": 1}), units) == (units[1],)
    with pytest.raises(ComposerError, match="for no unit"):
        pinned(Pin("down_blocks.2.*", {"a": 1}), units)


def means(units: tuple[str, ...], unit: str) -> bool:
    return any(Pin(pattern, {"a": 1}).means(unit) for pattern in units)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_pins_of_a_block_are_for_it_alone(family: Family) -> None:
    layout = family.layouts[max(family.layouts)]
    for places in layout[1:]:
        units = block_units(places)
        everywhere = [f"{place}.0" if place.endswith("mid_block") else place for place in places]
        assert all(means(units, unit) for unit in everywhere)
        others = [place for other in layout[1:] if other != places for place in other]
        assert not any(means(units, other) for other in others)


def test_block_weights_of_two_lengths_of_one_family() -> None:
    """The shorter string says nothing of the blocks that the longer alone has."""
    short, long = ["1"] * 17, ["1"] * 26
    short[7] = long[13] = "0.5"  # M00
    long[4], long[0] = "0.25", "0.75"  # IN03, BASE
    asked = merged(
        f"<lora:neon:1:lbw={','.join(short)}> <lora:zibo:2:lbw={','.join(long)}>",
        LoraRow(name="moon", weight=0.5),
    )
    weights = {"moon": 0.5, "neon": 1.0, "zibo": 0.5}
    assert asked.pins == (
        Pin("?down_blocks.0.downsamplers.0", weights),
        Pin("?mid_block.*", {"moon": 0.5, "neon": 0.5, "zibo": 1.0}),
    )
    assert {row.name: row.text_encoder for row in asked.rows if row.name != "moon"} == {
        "neon": 1.0,
        "zibo": 1.5,
    }
    with pytest.raises(ComposerError, match="of 12 and of 26 numbers, which are of several fam"):
        merged(f"<lora:neon:1:lbw=SDXL-OUTALL> <lora:zibo:1:lbw={','.join(long)}>")


def test_block_weights_of_another_family_are_refused() -> None:
    pins = merged("<lora:neon:1:lbw=OUTALL>").pins
    check_family(pins, STABLE_DIFFUSION_2)
    check_family([Pin(pin.units, pin.weights) for pin in pins], SDXL)  # written by hand
    with pytest.raises(ComposerError, match=r"17 numbers, and .* SDXL are 12 or 20.*SDXL-ALL"):
        check_family([pin.among(["neon"]).renamed({"neon": "glow"}) for pin in pins], SDXL)
    pins = merged("<lora:neon:1:lbw=1" + ",0" * 19 + ">").pins
    check_family(pins, SDXL)
    with pytest.raises(ComposerError, match=r"20 numbers, and those of .* 1.x are 17 or 26.*INS"):
        check_family(pins, STABLE_DIFFUSION_1)


@pytest.mark.parametrize(
    "tag", ["<lora:neon:1>", "<lyco:neon:1>", "<lora:no such:1>", "<LoRA:neon:1:stop=5>"]
)
def test_a_tag_in_the_negative_prompt_is_refused(tag: str) -> None:
    message = r"negative prompt holds the tag '<lora:.*in the prompt alone. Move it there"
    with pytest.raises(ComposerError, match=message):
        merged("a fox", negative=f"{tag} blurry")
    assert merged("a fox", negative="blurry").request.negative_prompt == "blurry"
