"""A studio on the tiny model, with a folder of LoRAs, sound and broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from studio_pictures import ready
from tiny_loras import write_lora

from composer.studio import Studio


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sound LoRAs, one with NaN, one for another model, a pickle, a cut-off file."""
    folder = tmp_path_factory.mktemp("loras")
    card = {"composer.role": "character", "modelspec.trigger_phrase": "zibo fox"}
    zibo = write_lora(folder / "zibo.safetensors", seed=1, **card)
    write_lora(folder / "neon.safetensors", seed=2, **{"composer.role": "style"})
    write_lora(folder / "lost.safetensors", seed=3, broken=True)
    write_lora(folder / "foreign.safetensors", seed=4, width=768)
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04\x95" + bytes(64))
    (folder / "cut.safetensors").write_bytes(zibo.read_bytes()[:-100])
    return folder


@pytest.fixture(scope="session")
def studio(
    tiny_sd: Path, lora_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Studio]:
    """One studio for all tests of a run, as in life: whatever one does must not harm the next."""
    studio = ready(tiny_sd, lora_folder, tmp_path_factory.mktemp("outputs"))
    yield studio
