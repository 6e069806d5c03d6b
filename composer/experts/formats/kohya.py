"""kohya's sd-scripts, and most files on model sites: `lora_unet_..._to_q.lora_down.weight`.

Dots of module names are underscores, so a name means something only beside the model's own names.
SDXL files number the blocks as the original code does (sgm.py) or as diffusers does; Linear and
Conv2d LoRAs (LoCon) have the same keys and differ by shape.
"""

from __future__ import annotations

import re

from composer.experts.formats.key import Key, Slot

_KEY = re.compile(
    r"lora_(?P<part>unet|te1|te2|te)_(?P<module>[^.]+)\.(?P<slot>lora_down\.weight|lora_up\.weight|alpha)"
)
_PARTS = {
    "unet": "unet",
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
}
_SLOTS: dict[str, Slot] = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}


def parse(key: str) -> Key | None:
    """Read one of kohya's keys; None if it is not one."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    # Some converters wrote the prefix twice; no module of a U-Net is called `unet_…`.
    module = match["module"].removeprefix("unet_")
    return Key(
        format="kohya", part=_PARTS[match["part"]], module=module, slot=_SLOTS[match["slot"]]
    )
