"""Loading the language model that a command is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from composer.language.load import LanguageModel


def load(model: str, device: str | torch.device, precision: str, bits: int = 16) -> LanguageModel:
    """The model of a folder or hub name, in float32, bfloat16 or whichever of them is faster
    ("auto"), its base in 4 or 8 bits."""
    import torch

    from composer.language.load import load_language_model
    from composer.precision import in_bfloat16

    quantisation: Any = {4: "4bit", 8: "8bit", 16: "none"}.get(bits, f"{bits} bits")
    dtype = torch.bfloat16 if in_bfloat16(precision, str(device)) else torch.float32
    return load_language_model(model, device=device, dtype=dtype, quantisation=quantisation)
