"""diffusers: `unet.down_blocks.0....to_q.lora_A.weight`, and the spellings before PEFT.

Before, it was `.lora.down.weight`, and `.lora_linear_layer.down.weight` in text encoders. Files
saved from one U-Net alone have no `unet.` before their names.
"""

from __future__ import annotations

import re

from composer.experts.formats.key import PART, Key, split_ending

_PART = re.compile(PART + r"(?P<rest>.+)")


def parse(key: str) -> Key | None:
    """Read one of diffusers' keys; None if it is not one."""
    outer = _PART.fullmatch(key)
    if outer is None or (split := split_ending(outer["rest"])) is None:
        return None
    return Key(format="diffusers", part=outer["part"], module=split[0], slot=split[1])
