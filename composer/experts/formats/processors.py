"""diffusers' old attention processors: `....attn1.processor.to_q_lora.down.weight`.

The LoRA belonged to the processor of an attention, not to its projections, and the text encoder's
attention was spelled with the U-Net's words.
"""

from __future__ import annotations

import re

from composer.experts.formats.key import PART, Key

_KEY = re.compile(
    PART + r"(?P<attention>.+?)(?:\.processor)?\.(?P<projection>to_(?:q|k|v|out))_lora\."
    r"(?P<slot>down|up)\.weight"
)
_CLIP = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def parse(key: str) -> Key | None:
    """Read one key of an attention processor; None if it is not one."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    projection = match["projection"]
    if match["attention"].endswith("self_attn"):
        projection = _CLIP[projection]
    elif projection == "to_out":
        projection = "to_out.0"
    return Key(
        format="attention processors",
        part=match["part"],
        module=f"{match['attention']}.{projection}",
        slot=match["slot"],
    )
