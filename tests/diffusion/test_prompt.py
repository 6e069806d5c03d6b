"""LoRA tags in prompts."""

from __future__ import annotations

import pytest

from composer.diffusion.prompt import LoraTag, parse_prompt
from composer.errors import ComposerError


@pytest.mark.parametrize(
    ("tag", "name", "unet", "text_encoder"),
    [
        ("<lora:wren:0.8>", "wren", 0.8, 0.8),
        ("<lora:wren>", "wren", 1, 1),
        ("<LORA: my wren v1.2 : -.5 >", "my wren v1.2", -0.5, -0.5),
        ("<lora:wren:0.5:1>", "wren", 1, 0.5),
        ("<lora:wren:te=0.5:unet=2>", "wren", 2, 0.5),
        ("<lora:wren:1:unet=0>", "wren", 0, 1),
        ("<lora:wren:te=0.3>", "wren", 0.3, 0.3),
        ("<lyco:wren:0.5>", "wren", 0.5, 0.5),
        ("<LoHa:wren:0.5:1>", "wren", 1, 0.5),
        ("<lokr:wren>", "wren", 1, 1),
        ("<lora:wren:0.7@0,0.7@0.5>", "wren", 0.7, 0.7),
        ("<lora:wren:0.7@0.5>", "wren", 0.7, 0.7),
        ("<lora:wren:1> <lyco:wren:-0.5:1>", "wren", 2, 0.5),
    ],
)
def test_weights(tag: str, name: str, unet: float, text_encoder: float) -> None:
    parsed = parse_prompt(f"a bird {tag}")
    assert parsed.loras == (LoraTag(name=name, unet=unet, text_encoder=text_encoder),)
    assert parse_prompt(str(parsed.loras[0])).loras == parsed.loras


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a fox,  as typed ,", "a fox,  as typed ,"),
        ("", ""),
        ("<lora:a:1>", ""),
        ("a fox <lora:a:1> on snow", "a fox on snow"),
        ("<lora:a:1>, a fox, <lora:b:1>, snow, <lora:c:1>", "a fox, snow"),
        ("a fox\n<lora:a:1>snow", "a fox\nsnow"),
        ("1 < 2 <lora:a:1>", "1 < 2"),
        ("a <lyco:a:1> fox", "a fox"),
        ("a <b> c", "a <b> c"),
    ],
)
def test_text_is_tidy(prompt: str, text: str) -> None:
    assert parse_prompt(prompt).text == text


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <lora:wren:0.8", "'<lora:wren:0.8' in the prompt is not complete"),
        ("a <lora wren>", "'<lora wren>' in the prompt is not complete"),
        ("<lora::1>", "names no LoRA"),
        ("<lora:wren:strong>", "has 'strong' where a number is needed"),
        ("<lora:wren:nan>", "has 'nan' where a number"),
        ("<lora:wren:1:2:3>", "too many weights"),
        (
            "<lora:wren:1:lbw=SOME>",
            r"'SOME', which are neither numbers, 17 or 26 \(Stable Diffusion 1.x\), .*"
            r"12 or 20 \(SDXL\), nor one of NONE",
        ),
        ("<lora:wren:1:lbw=1" + ",1" * 18 + ">", "neither numbers, 17 or 26"),
        ("<lora:wren:1:1,0,1>", "block weights '1,0,1'"),
        ("<lora:wren:1:lbwe=ATTNON>", "'lbwe=ATTNON', which is not known"),
        ("<lora:wren:0@0,1@0.5>", "'0@0,1@0.5', and a weight that changes from step to step"),
        ("<lora:wren:1:step=5>", "has '' where a number is needed"),
        ("<lora:wren:1> <lora:wren:2:stop=4>", "'wren' twice with other limits"),
        ("<hypernet:wren:1>", "'<hypernet:wren:1>' in the prompt names a hypernetwork"),
        ("a <lyco:wren", "'<lyco:wren' in the prompt is not complete"),
    ],
)
def test_malformed_tags_say_what_to_write(prompt: str, message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        parse_prompt(prompt)


@pytest.mark.parametrize(
    ("tag", "span"),
    [
        ("<lora:wren:1:start=5>", (0.25, 1.0)),
        ("<lora:wren:1:stop=5>", (0.0, 0.25)),
        ("<lora:wren:1:step=5-10>", (0.25, 0.5)),
        ("<lora:wren:0.5:1:start=5:stop=40>", (0.25, 1.0)),
    ],
)
def test_limits_to_steps(tag: str, span: tuple[float, float]) -> None:
    (read,) = parse_prompt(tag).loras
    assert read.span(20) == span
    assert parse_prompt(str(read)).loras == (read,)


@pytest.mark.parametrize(
    ("written", "blocks"),
    [
        ("lbw=INS", (1.0,) * 4 + (0.0,) * 13),
        ("lbw=all0.5", (0.5,) * 17),
        ("lbw=SD-OUTD", (1.0,) + (0.0,) * 7 + (1.0,) * 4 + (0.0,) * 5),
        ("lbw=MIDD0.8", (1, 0, 0, 0, 0, 0.5, 0.8, 0.8, 0.4) + (0.0,) * 8),
        ("lbw=SDXL-MIDALL", (1.0,) + (0.0,) * 4 + (1.0,) + (0.0,) * 6),
        ("lbw=1" + ",0.5" * 11, (1.0,) + (0.5,) * 11),
        ("lbw=1" + ",0.5" * 19, (1.0,) + (0.5,) * 19),
        ("lbw=1" + ",0.5" * 25, (1.0,) + (0.5,) * 25),
        ("lbw=1" + ",0.5" * 16, (1.0,) + (0.5,) * 16),
        ("1" + ",0" * 16, (1.0,) + (0.0,) * 16),  # as it was written before lbw=
    ],
)
def test_block_weights(written: str, blocks: tuple[float, ...]) -> None:
    (read,) = parse_prompt(f"<lora:wren:0.8:{written}>").loras
    assert (read.unet, read.blocks) == (0.8, blocks)
    assert parse_prompt(str(read)).loras == (read,)


def test_with_notes_what_cannot_be_done_is_noted_and_the_rest_is_taken() -> None:
    notes: list[str] = []
    text = "a fox <lora:wren:0@0,1@1:te=0.5> <hypernet:old:1>, snow <lora:b:2:dyn=4> <lora:c"
    parsed = parse_prompt(text, notes)
    assert parsed.text == "a fox, snow"
    assert {tag.name: tag.text_encoder for tag in parsed.loras} == {"wren": 0.5, "b": 2}
    for part in ("changes from step to step", "hypernetwork", "'dyn=4'", "'<lora:c'"):
        assert sum(part in note for note in notes) == 1
