"""Files of tuned weights for the tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from composer.diffusion.load import load_model
from composer.experts.hashes import tensor_hash_of
from composer.fusions.tuned_weights import TunedLora, TunedWeights


def write_weights(
    path: Path,
    folder: Path,
    loras: Mapping[str, Path],
    weights: Mapping[str, float],
    *,
    model_hash: str | None = None,
) -> Path:
    """Weights for these LoRAs (name -> file) over the model in `folder`; another hash makes them
    weights for another model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = load_model(folder)
    TunedWeights(
        loras=tuple(
            TunedLora(name=name, tensor_hash=tensor_hash_of(loras[name]), weight=weight)
            for name, weight in weights.items()
        ),
        model=model.name,
        model_hash=model_hash or model.hash,
        judge="CLIP",
        pictures=8,
        points=16,
        grid=(0.8, 1.0, 1.2, 1.4),
    ).write(path)
    return path
