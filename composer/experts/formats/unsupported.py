"""Kinds of adapter that are known and not read yet: each refused by its name.

Dropping the keys that one does not understand gives a picture that is wrong without a word, so a
file with any of these is refused whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_KINDS: tuple[tuple[str, str, str], ...] = (
    # what it is called, which keys show it, what to do
    (
        "an old OFT (PEFT before 0.14)",
        r"\.oft_r(\.|$)",
        "Merge it into its model with the PEFT of its time.",
    ),
    (
        "an old OFT (LyCORIS before 2.0)",
        r"\.oft_diag$",
        "Load it with the LyCORIS of its time and save it as a LoRA.",
    ),
    (
        "a LoRA with a sparse remainder",
        r"\.bias_(indices|values|size)$",
        "Extract it again without `--sparse_bias`.",
    ),
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
_EMBEDDING = re.compile(r"<(?P<token>.*)>|bundle_emb\.(?P<bundled>[^.]+)(?:\..*)?", re.DOTALL)
_LONE_EMBEDDING = re.compile(r"emb_params|string_to_param.*|clip_[lgh]", re.DOTALL)
_PATTERNS = tuple((name, re.compile(pattern), remedy) for name, pattern, remedy in _KINDS)


def find_unsupported(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The unsupported kinds among the keys: name → (the first key that shows it, the remedy)."""
    found: dict[str, tuple[str, str]] = {}
    for key in keys:
        for name, pattern, remedy in _PATTERNS:
            if name not in found and pattern.search(key):
                found[name] = (key, remedy)
    return found


def find_embeddings(keys: Iterable[str]) -> dict[str, str]:
    """The textual inversion embeddings among the keys: key → the word that calls it.

    lora_diffusion keeps them as `<word>`, others as `bundle_emb.<name>.…`; the keys of a file that
    holds one embedding alone name none, and stand for themselves.
    """
    found: dict[str, str] = {}
    for key in keys:
        if match := _EMBEDDING.fullmatch(key):
            found[key] = match["bundled"] or key
        elif _LONE_EMBEDDING.fullmatch(key):
            found[key] = key
    return found
