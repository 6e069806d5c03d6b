"""ComfyUI's own names, as its LoraSave and newer trainers write them.

`diffusion_model.input_blocks.1.1....to_q.lora_up.weight` with the original code's names (sgm.py),
`text_encoders.clip_l.transformer.text_model....` with CLIP's own; factors in either spelling.
"""

from __future__ import annotations

import re

from composer.experts.formats.key import AB_SLOTS, LORA_AB, SLOTS, Key

_PART = re.compile(
    r"(?:(?P<unet>diffusion_model)|text_encoders\.(?P<clip>clip_[lg])\.transformer)\.(?P<rest>.+)"
)
_UP_DOWN = re.compile(r"(?P<module>.+?)\.lora_(?P<slot>up|down)\.weight")
_ALPHA = re.compile(r"(?P<module>.+?)\.alpha")
_PARTS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


def parse(key: str) -> Key | None:
    """Read one of ComfyUI's keys; None if it is not one."""
    outer = _PART.fullmatch(key)
    if outer is None:
        return None
    part = "unet" if outer["unet"] else _PARTS[outer["clip"]]
    if match := LORA_AB.fullmatch(outer["rest"]):
        slot = AB_SLOTS[match["slot"]]
    elif match := _UP_DOWN.fullmatch(outer["rest"]):
        slot = SLOTS[match["slot"]]
    elif match := _ALPHA.fullmatch(outer["rest"]):
        slot = "alpha"
    else:
        return None
    return Key(format="ComfyUI", part=part, module=match["module"], slot=slot)
