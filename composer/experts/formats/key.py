"""What the name of one tensor in a LoRA file says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Slot = Literal["down", "up", "alpha"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """One tensor: a factor, or the alpha, of the module that the file spells `module`.

    `part` is None where the format does not say which part of the model it means.
    """

    format: str
    part: str | None
    module: str
    slot: Slot


PART = r"(?:(?P<part>unet|text_encoder_2|text_encoder)\.)?"
"""How dotted formats begin a name: with the part of the pipeline, or with nothing."""

LORA_AB = re.compile(r"(?P<module>.+?)\.lora_(?P<slot>[AB])(?:\.[^.]+)?\.weight")
"""PEFT's pair, `lora_A` (down) and `lora_B` (up), with the adapter's name after it or not."""

AB_SLOTS: dict[str, Slot] = {"A": "down", "B": "up"}
SLOTS: dict[str, Slot] = {"down": "down", "up": "up"}
