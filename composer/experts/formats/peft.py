"""PEFT's own adapter files: `base_model.model....to_q.lora_A.weight` beside adapter_config.json.

SimpleTuner puts the part of the pipeline before all of it: `unet.base_model.model....`
"""

from __future__ import annotations

import re

from composer.experts.formats.key import PART, Key, split_ending

_INNER = PART.replace("<part>", "<inner>")
_KEY = re.compile(PART + r"base_model\.model\." + _INNER + r"(?P<rest>.+)")


def parse(key: str) -> Key | None:
    """Read one of PEFT's keys; None if it is not one."""
    outer = _KEY.fullmatch(key)
    if outer is None or (split := split_ending(outer["rest"])) is None:
        return None
    part = outer["part"] or outer["inner"]
    return Key(format="PEFT", part=part, module=split[0], slot=split[1])
