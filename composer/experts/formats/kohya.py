"""kohya's sd-scripts, and most files on model sites: `lora_unet_..._to_q.lora_down.weight`.

Dots of module names are underscores, so a name means something only beside the model's own names.
SDXL files number the blocks as the original code does (sgm.py) or as diffusers does; Linear and
Conv2d LoRAs (LoCon) have the same keys and differ by shape. LyCORIS' wrapper and SimpleTuner write
`lycoris_`, diffusers' conversion of PEFT's names `base_model_model_`, and do not say of which part.
"""

from __future__ import annotations

import re

from composer.experts.formats.key import Key, split_ending
from composer.families import named

_PARTS = {"lora_unet_": "unet", **named("kohya"), "lycoris_": None, "base_model_model_": None}
_MODULE = re.compile(rf"(?P<prefix>{'|'.join(_PARTS)})(?P<module>[^.]+(?:\.[^.]+)?)")


def parse(key: str) -> Key | None:
    """Read one of kohya's keys; None if it is not one."""
    split = split_ending(key)
    if split is None and key.endswith(".weight"):  # LyCORIS' (IA)³
        split = key.removesuffix(".weight"), "weight"
    match = None if split is None else _MODULE.fullmatch(split[0])
    if split is None or match is None:
        return None
    # Some converters wrote the prefix twice; no module of a U-Net is called `unet_…`.
    module, slot = match["module"].removeprefix("unet_"), split[1]
    if "." in module and slot == "dora_scale":
        slot = "magnitude"  # diffusers' conversion leaves the last dot, and renames PEFT's
    module = module.replace(".", "_")
    return Key(format="kohya", part=_PARTS[match["prefix"]], module=module, slot=slot)
