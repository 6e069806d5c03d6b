"""The tiny model loads as an ordinary pipeline and makes a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline


@pytest.mark.parametrize("fixture", ["tiny_sd", "tiny_zero_snr_sd"])
def test_tiny_sd_makes_a_picture(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red fox", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (16, 16, 3)
    assert np.isfinite(picture).all()
    assert pipeline.tokenizer.model_max_length == 32


def test_tiny_tokenizer_is_made_of_bytes(tiny_sd: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer", local_files_only=True)
    ids = tokenizer("a fox").input_ids
    words = tokenizer.convert_ids_to_tokens(ids)
    assert words == ["<|startoftext|>", "a</w>", "f", "o", "x</w>", "<|endoftext|>"]
