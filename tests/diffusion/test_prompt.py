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
        ("<lora:wren:1:lbw=ALL>", "'lbw=ALL', which is not known"),
        ("<lora:wren:1> <lora:wren:2>", "'wren' twice"),
    ],
)
def test_malformed_tags_say_what_to_write(prompt: str, message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        parse_prompt(prompt)
