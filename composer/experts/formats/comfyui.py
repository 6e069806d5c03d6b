"""ComfyUI's own names, as its LoraSave and newer trainers write them.

`diffusion_model.input_blocks.1.1....to_q.lora_up.weight` with the original code's names (sgm.py),
`text_encoders.clip_l.transformer.text_model....` with CLIP's own.
"""

from __future__ import annotations

import re

from composer.experts.formats.key import Key, split_ending
from composer.families import named

_PARTS = named("comfyui")
_PART = re.compile(
    r"(?:(?P<unet>diffusion_model)"
    rf"|text_encoders\.(?P<clip>{'|'.join(_PARTS)})\.transformer)\.(?P<rest>.+)"
)


def parse(key: str) -> Key | None:
    """Read one of ComfyUI's keys; None if it is not one."""
    outer = _PART.fullmatch(key)
    if outer is None or (split := split_ending(outer["rest"])) is None:
        return None
    part = "unet" if outer["unet"] else _PARTS[outer["clip"]]
    return Key(format="ComfyUI", part=part, module=split[0], slot=split[1])
