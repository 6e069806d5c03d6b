"""PEFT's own adapter files: `base_model.model....to_q.lora_A.weight` beside adapter_config.json."""

from __future__ import annotations

import re

from composer.experts.formats.key import AB_SLOTS, LORA_AB, PART, Key

_PREFIX = "base_model.model."
_PART = re.compile(PART + r"(?P<rest>.+)")


def parse(key: str) -> Key | None:
    """Read one of PEFT's keys; None if it is not one."""
    outer = _PART.fullmatch(key.removeprefix(_PREFIX))
    match = LORA_AB.fullmatch(outer["rest"]) if outer and key.startswith(_PREFIX) else None
    if outer is None or match is None:
        return None
    return Key(
        format="PEFT", part=outer["part"], module=match["module"], slot=AB_SLOTS[match["slot"]]
    )
