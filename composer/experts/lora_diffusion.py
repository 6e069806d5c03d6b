"""The numbers by which lora_diffusion calls modules: `unet:0` is the first in its order.

It counted the Linear modules below certain classes in the order in which the model had registered
them (`named_modules()`). diffusers and transformers order some of them otherwise today, so the
order of that time is written out here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import cast

from composer.errors import ComposerError
from composer.experts.header import Header
from composer.outside import parse_json

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_UNET = (
    *(f"attn1.{projection}" for projection in _ATTENTION),
    "ff.net.0.proj",
    *(f"attn2.{projection}" for projection in _ATTENTION),
)
_TEXT = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj")
# The mid block came last: it was given to the U-Net after the lists of the others.
_SIDES = ("down_blocks", "up_blocks", "mid_block")
_BLOCK = re.compile(
    r"(?P<block>(?P<side>down_blocks|up_blocks|mid_block)(?:\.\d+)?\.attentions\.\d+"
    r"\.transformer_blocks\.\d+|(?:text_model\.)?encoder\.layers\.\d+)\.(?P<rest>.+)"
)

CLASSES = {
    "unet": frozenset({"CrossAttention", "Attention", "GEGLU"}),
    "text_encoder": frozenset({"CLIPAttention"}),
}
"""The classes below which it looks unless told otherwise; the file's metadata names them."""


def numbered_names(part: str, names: Iterable[str]) -> dict[str, str]:
    """For a part of a model: `:0`, `:1` and so on → the module that is meant."""
    order = _UNET if part == "unet" else _TEXT
    found: list[tuple[int, list[int], int, str]] = []
    for name in names:
        match = _BLOCK.fullmatch(name)
        if match is None or match["rest"] not in order:
            continue
        side = _SIDES.index(match["side"]) if match["side"] else 0
        numbers = [int(number) for number in re.findall(r"\d+", match["block"])]
        found.append((side, numbers, order.index(match["rest"]), name))
    return {f":{number}": name for number, (*_, name) in enumerate(sorted(found))}


def check_classes(header: Header, parts: Iterable[str | None]) -> None:
    """Refuse a file of lora_diffusion's that counted below other classes, as an extended one does.

    Raises:
        ComposerError: its metadata names others.
    """
    for part in {part for part in parts if part in CLASSES}:
        known = CLASSES[part]
        said = header.metadata.get(part, "")
        classes = _words(said) if said else known
        if not classes <= known or ("GEGLU" in known) != ("GEGLU" in classes):
            raise ComposerError(
                f"{header.path}: is a lora_diffusion file that counts modules below "
                f"{', '.join(sorted(classes))[:200]} of the {part}, and Composer knows the order "
                f"below {', '.join(sorted(known))} alone. Convert it to kohya's names."
            )


def _words(text: str) -> frozenset[str]:
    try:
        words = parse_json(text)
    except ValueError:
        words = text
    return frozenset(map(str, cast("list[object]", words) if isinstance(words, list) else [words]))
