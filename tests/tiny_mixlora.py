"""MixLoRAs for the tiny model: never trained, but strong enough to be seen in its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from composer.diffusion.load import load_model
from composer.fusions.mixlora_file import ADAPTER, LearnedSet, MixLoraFile
from composer.mixlora import LoraSettings, MixLoraSettings, RouterSettings, attach_mixlora

PLAIN = LoraSettings(rank=2, alpha=2.0, dropout=0.0)
SETTINGS = MixLoraSettings(
    experts=PLAIN,
    attention=PLAIN,
    convolutions=PLAIN,
    router=RouterSettings(experts=3, top_k=2, init_std=0.3),
)


def tiny_mixlora(
    folder: Path,
    triggers: Sequence[str] = ("zibo fox", "tavo robot"),
    *,
    settings: MixLoraSettings = SETTINGS,
    seed: int = 0,
    model_hash: str | None = None,
) -> MixLoraFile:
    """One for the model in `folder`; another hash makes it one for another model."""
    model = load_model(folder)
    generator = torch.Generator().manual_seed(seed)
    with attach_mixlora(model.unet, {ADAPTER: settings}, seed=seed) as mixlora:
        with torch.no_grad():
            for path, parameter in mixlora.named_parameters(ADAPTER):
                if path.endswith(".B"):
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        return MixLoraFile(
            model=model.name,
            model_hash=model.hash if model_hash is None else model_hash,
            settings=mixlora.configs[ADAPTER],
            sets=tuple(
                LearnedSet(trigger=trigger, title=trigger.split()[0].title(), pictures=3)
                for trigger in triggers
            ),
            tensors=mixlora.state_dict(ADAPTER),
        )


def write_mixlora(path: Path, file: MixLoraFile) -> Path:
    """Write it where a library looks for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file.write(path)
    return path
