"""Kinds of adapter that are known and not read yet: each refused by its name.

Dropping the keys that one does not understand gives a picture that is wrong without a word, so a
file with any of these is refused whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_CONVERT = "Convert it to kohya naming, or use another LoRA."

_KINDS: tuple[tuple[str, str, str], ...] = (
    # what it is called, which keys show it, what to do
    ("LoHa (LyCORIS)", r"\.hada_", "Extract a plain LoRA from it, or use another."),
    ("LoKr (LyCORIS)", r"\.lokr_", "Extract a plain LoRA from it, or use another."),
    ("GLoRA (LyCORIS)", r"\.[ab][12]\.weight$", "Extract a plain LoRA from it, or use another."),
    ("(IA)³", r"\.on_input$|\.ia3_l$", "Use a LoRA instead."),
    ("OFT or BOFT", r"\.oft_(blocks|diag|r\b)|\.boft_", "Use a LoRA instead."),
    ("DoRA", r"\.dora_scale$|lora_magnitude_vector", "Use the plain LoRA of it, if there is one."),
    ("LoCon with Tucker factors", r"\.lora_mid\.", "Train it again without `use_tucker`/`use_cp`."),
    ("a LoRA with biases", r"\.lora_[AB](\.[^.]+)?\.bias$", "Train it again with `lora_bias` off."),
    ("full weight differences (.diff)", r"\.diff(_b|_m)?$", "Extract a plain LoRA from it."),
    ("trained norms", r"\.[wb]_norm$", "Train it again without norms."),
    (
        "a textual inversion embedding",
        r"^<.*>$|^bundle_emb\.|^emb_params$|^string_to_param|^clip_[lg]$",
        "Composer reads LoRAs; embeddings are another kind of file.",
    ),
    ("lora_diffusion (cloneofsimo)", r"^(unet|text_encoder):\d+:(up|down)$", _CONVERT),
    (
        "a LoRA for a transformer model (Flux, SD 3 and the like)",
        r"^(transformer|lora_transformer)[._]|double_blocks|single_blocks|joint_blocks"
        # ComfyUI's prefix, before anything but a part of a U-Net.
        r"|^diffusion_model\.(?!(input|middle|output)_blocks?\.|out\.|time_embed\.|label_emb\.)",
        "Composer composes Stable Diffusion 1.x and 2.x: use a LoRA made for one of them.",
    ),
    ("ControlNet-LLLite", r"^lllite_", "It is a control model, not a LoRA."),
    (
        "a whole model, not a LoRA",
        r"^model\.diffusion_model\.|^first_stage_model\.|^cond_stage_model\.|^conv_in\.weight$",
        "Put it among the models.",
    ),
)
_PATTERNS = tuple((name, re.compile(pattern), remedy) for name, pattern, remedy in _KINDS)


def find_unsupported(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The unsupported kinds among the keys: name → (the first key that shows it, the remedy)."""
    found: dict[str, tuple[str, str]] = {}
    for key in keys:
        for name, pattern, remedy in _PATTERNS:
            if name not in found and pattern.search(key):
                found[name] = (key, remedy)
    return found
