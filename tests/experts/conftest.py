"""The tiny Stable Diffusion's parts, and the names of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from composer.experts import ModuleNames


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_sd: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_sd, local_files_only=True)


@pytest.fixture(scope="session")
def tiny_names(tiny_pipeline: Any) -> ModuleNames:
    models = {"unet": tiny_pipeline.unet, "text_encoder": tiny_pipeline.text_encoder}
    return ModuleNames.of(models, model="tiny")


@pytest.fixture
def pipeline(tiny_pipeline: Any) -> Iterator[Any]:
    """The pipeline, freed of every adapter after the test."""
    yield tiny_pipeline
    tiny_pipeline.unload_lora_weights()
