"""Libraries load one model at a time: they change PyTorch for all threads while they do."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_clip import write_clip
from tiny_language import make_tiny_language

from composer.diffusion.clip import Clip
from composer.diffusion.load import load_model
from composer.files import LOADING
from composer.language.load import load_language_model


def free() -> bool:
    """Whether another thread could load a model now."""
    found: list[bool] = []

    def ask() -> None:
        if LOADING.acquire(blocking=False):
            LOADING.release()
            found.append(True)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return bool(found)


def test_models_of_every_kind_load_alone(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    loaded: list[bool] = []
    original: Any = PreTrainedModel.__init__

    def watched(own: Any, *given: Any, **options: Any) -> None:
        loaded.append(free())
        original(own, *given, **options)

    clip, language = write_clip(tmp_path / "clip", tiny_sd), tmp_path / "language"
    make_tiny_language(language)
    monkeypatch.setattr(PreTrainedModel, "__init__", watched)
    model = load_model(tiny_sd)  # whose text encoder is one of transformers' models
    assert set(loaded) == {False} and free()
    loaded.clear()
    Clip.load(str(clip), model)
    load_language_model(language)
    assert set(loaded) == {False} and free()
