"""A folder of transformers loads; what is no such folder is said, and nothing but safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_language import make_tiny_language

from composer.errors import ComposerError
from composer.language.load import load_language_model


def test_a_folder_loads_frozen(tmp_path: Path) -> None:
    found = load_language_model(make_tiny_language(tmp_path / "tiny"))
    assert (found.name, found.pad, found.device.type) == ("tiny", 257, "cpu")
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())
    half = load_language_model(tmp_path / "tiny", dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ComposerError, match="no language model folder"):
        load_language_model(tmp_path / "missing")
    with pytest.raises(ComposerError, match=r"no config\.json"):
        load_language_model(tmp_path)
    folder = make_tiny_language(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ComposerError, match="others are not opened"):
        load_language_model(folder)
    weights.write_bytes(data[:100])
    with pytest.raises(ComposerError, match="cannot be loaded as a language model"):
        load_language_model(folder)


@pytest.mark.parametrize("quantisation", ["4bit", "8bit"])
def test_quantisation_without_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantisation: str
) -> None:
    folder = make_tiny_language(tmp_path / "tiny")
    monkeypatch.setattr("composer.language.load.find_spec", lambda name: None)
    with pytest.raises(ComposerError, match="pip install 'composer-sd"):
        load_language_model(folder, quantisation=quantisation)  # type: ignore[arg-type]
    with pytest.raises(ComposerError, match="'2bit' is unknown"):
        load_language_model(folder, quantisation="2bit")  # type: ignore[arg-type]
