"""cloneofsimo's lora_diffusion: `unet:0:up`, numbered in the order of the model's own modules.

The number counts the Linear modules below the classes that the metadata names, in the order in
which the model of its time registered them: down, up, then mid blocks; in each transformer block
the first attention, the feed-forward's GEGLU, then the second. What stands for the module here is
its number; `ModuleNames` knows the order.
"""

from __future__ import annotations

import re

from composer.experts.formats.key import Key

FORMAT = "lora_diffusion"
_KEY = re.compile(r"(?P<part>unet|text_encoder):(?P<number>\d{1,5}):(?P<slot>up|down)")


def parse(key: str) -> Key | None:
    """Read one of lora_diffusion's keys; None if it is not one."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    return Key(format=FORMAT, part=match["part"], module=f":{match['number']}", slot=match["slot"])
