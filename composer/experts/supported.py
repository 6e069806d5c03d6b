"""Which files Composer reads, judged by their headers alone."""

from __future__ import annotations

from composer.errors import ComposerError
from composer.experts.formats import KINDS, find_embeddings, find_unsupported, parse_key
from composer.experts.header import Header
from composer.experts.library import EMBEDDINGS_FOLDER

GATES = "composer.gates"
"""The key in the metadata of a file that holds trained gates and no LoRA."""

MIXLORA = "composer.mixlora"
"""The key in the metadata of a file that holds a MixLoRA for pictures and no plain LoRA."""

OWN = {
    GATES: ("trained gates", "gates/", "gates are"),
    MIXLORA: ("a MixLoRA", "mixlora/", "MixLoRAs are"),
}
"""Composer's own kinds: what they hold, and their folder in a LoRA folder."""


def check_supported(header: Header) -> None:
    """Refuse by name a file of a kind that Composer does not read, judged by its tensors' names."""
    for key, (what, folder, they_are) in OWN.items():
        if key in header.metadata:
            raise ComposerError(
                f"{header.path}: holds {what} and no LoRA. Put it into the folder {folder} of a "
                f"LoRA folder, where {they_are} looked for."
            )
    unsupported = find_unsupported(header.tensors)
    if unsupported:
        names = " and ".join(unsupported)
        key, remedy = next(iter(unsupported.values()))
        raise ComposerError(
            f"{header.path}: holds {names} (tensor {key!r}), which Composer does not read. {remedy}"
        )
    if not any(key and key.slot in KINDS for key in map(parse_key, header.tensors)):
        embeddings = find_embeddings(header.tensors)
        if embeddings:
            raise ComposerError(
                f"{header.path}: holds a textual inversion embedding ({next(iter(embeddings))!r}) "
                f"and no LoRA. Put it into the folder {EMBEDDINGS_FOLDER}/ of a LoRA folder: then "
                "its name stands for it in prompts."
            )
        some = ", ".join(map(repr, list(header.tensors)[:3])) or "none"
        raise ComposerError(
            f"{header.path}: holds no LoRA in a naming that Composer knows (kohya, LyCORIS, "
            f"diffusers, PEFT, ComfyUI, lora_diffusion); its first tensors: {some}. Use a LoRA for "
            "Stable Diffusion."
        )
