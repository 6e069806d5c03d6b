"""What the name of one tensor in a LoRA file says."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Key:
    """One tensor of the module that the file spells `module`: `slot` says which.

    `part` is None where the format does not say which part of the model it means. A slot is one of
    `down`, `up` and `alpha`, or what the trainer calls the tensor: `hada_w1_a`, `lokr_t2`, `diff`.
    """

    format: str
    part: str | None
    module: str
    slot: str


PART = r"(?:(?P<part>unet|text_encoder_2|text_encoder)\.)?"
"""How dotted formats begin a name: with the part of the pipeline, or with nothing."""

# Trainers mix the prefixes of one program with the endings of another, so all formats share these.
# An adapter's name may follow PEFT's: `lora_A.default.weight`.
_ENDING = re.compile(
    r"\.(?:"
    r"(?P<down>lora_down\.weight|(?:lora|lora_linear_layer)\.down\.weight"
    r"|lora_A(?:\.[^.]+)?\.weight)"
    r"|(?P<up>lora_up\.weight|(?:lora|lora_linear_layer)\.up\.weight|lora_B(?:\.[^.]+)?\.weight)"
    r"|(?P<alpha>(?:(?:lora|lora_linear_layer)\.)?alpha)"
    r"|(?P<mid>lora_mid\.weight)"
    r"|(?P<bias>lora_B(?:\.[^.]+)?\.bias)"
    r"|(?P<magnitude>lora_magnitude_vector(?:\.[^.]+)*)"
    r"|(?P<oft_R>oft_R(?:\.[^.]+)?\.weight)"
    r"|(?P<boft_R>boft_R(?:\.[^.]+)?)|(?P<boft_s>boft_s(?:\.[^.]+)?)|(?P<boft_P>boft_P)"
    r"|(?P<own>dora_scale|diff|diff_b|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2"
    r"|oft_blocks|rescale|on_input|ia3_l"
    r"|lambda_layer|[wb]_norm)"
    r"|(?P<weight>a1|a2|b1|b2|bm|[pq]_layer)\.weight"
    r")"
)

NORMS = "norms"
"""The kind of what changes norms, which are no sites: see docs/lora_files.md."""

KINDS = {
    **dict.fromkeys(("down", "up", "mid", "bias"), "LoRA"),
    **dict.fromkeys((f"hada_{s}" for s in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")), "LoHa"),
    **dict.fromkeys((f"lokr_{s}" for s in ("w1", "w1_a", "w1_b", "t2")), "LoKr"),
    **dict.fromkeys((f"lokr_{s}" for s in ("w2", "w2_a", "w2_b")), "LoKr"),
    **dict.fromkeys(("a1", "a2", "b1", "b2", "bm"), "GLoRA"),
    **dict.fromkeys(("p_layer", "q_layer", "lambda_layer"), "T-LoRA"),
    **dict.fromkeys(("weight", "on_input", "ia3_l"), "(IA)³"),
    **dict.fromkeys(("oft_blocks", "rescale"), "OFT"),
    "oft_R": "OFT of inputs",
    **dict.fromkeys(("boft_R", "boft_s", "boft_P"), "BOFT of inputs"),
    **dict.fromkeys(("diff", "diff_b"), "full difference"),
    **dict.fromkeys(("w_norm", "b_norm"), NORMS),
}
"""The kind of adapter that has a slot. `alpha` and DoRA's magnitudes go with several kinds."""

DORA = ("dora_scale", "magnitude")
"""DoRA's magnitudes, as LyCORIS and kohya call them, and as PEFT does."""


def split_ending(name: str) -> tuple[str, str] | None:
    """The module that a tensor's name begins with, and its slot; None if no ending is known."""
    dots = [len(name)]
    # No ending has more than three dots.
    while len(dots) < 5 and (dot := name.rfind(".", 0, dots[-1])) > 0:
        dots.append(dot)
    for start in reversed(dots[1:]):
        if match := _ENDING.fullmatch(name, start):
            kind = str(match.lastgroup)
            return name[:start], match[kind] if kind in ("own", "weight") else kind
    return None
