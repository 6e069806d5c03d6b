"""diffusers: `unet.down_blocks.0....to_q.lora_A.weight`, and the spellings before PEFT.

Before, it was `.lora.down.weight`, and `.lora_linear_layer.down.weight` in text encoders. Files
saved from one U-Net alone have no `unet.` before their names.
"""

from __future__ import annotations

import re

from composer.experts.formats.key import AB_SLOTS, LORA_AB, PART, SLOTS, Key

_PART = re.compile(PART + r"(?P<rest>.+)")
_OLD = re.compile(r"(?P<module>.+?)\.(?:lora|lora_linear_layer)\.(?P<slot>down|up)\.weight")
_ALPHA = re.compile(r"(?P<module>.+?)(?:\.lora|\.lora_linear_layer)?\.alpha")


def parse(key: str) -> Key | None:
    """Read one of diffusers' keys; None if it is not one."""
    outer = _PART.fullmatch(key)
    if outer is None:
        return None
    part, rest = outer["part"], outer["rest"]
    if match := LORA_AB.fullmatch(rest):
        return Key(
            format="diffusers", part=part, module=match["module"], slot=AB_SLOTS[match["slot"]]
        )
    if match := _OLD.fullmatch(rest):
        return Key(format="diffusers", part=part, module=match["module"], slot=SLOTS[match["slot"]])
    if match := _ALPHA.fullmatch(rest):
        return Key(format="diffusers", part=part, module=match["module"], slot="alpha")
    return None
