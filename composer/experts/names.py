"""The name under which people know a LoRA file."""

from __future__ import annotations

from pathlib import Path

_GENERIC = ("adapter_model", "pytorch_lora_weights", "diffusion_pytorch_model")


def expert_name(path: Path) -> str:
    """The file's name without its ending, or its folder's where every such file is called alike."""
    return path.parent.name if path.stem in _GENERIC and path.parent.name else path.stem
