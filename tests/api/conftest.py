"""The app, served in this process: what other programs call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served_app import AUTH, HAS_MCP, Served, serving
from studio_pictures import ready
from tiny_loras import write_lora

from composer.studio import Studio


@pytest.fixture(scope="session")
def studio(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """With two sound LoRAs and one that is none."""
    loras = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("zibo", "neon"), start=1):
        metadata = {"modelspec.trigger_phrase": name, "composer.role": "style"}
        write_lora(loras / f"{name}.safetensors", seed=seed, **metadata)
    (loras / "pickle.safetensors").write_bytes(b"\x80\x04\x95" + bytes(64))
    return ready(tiny_sd, loras, tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="session")
def served(studio: Studio) -> Iterator[Served]:
    """Open to all of this machine."""
    with serving(studio, mcp=HAS_MCP) as served:
        yield served


@pytest.fixture(scope="session")
def locked(studio: Studio) -> Iterator[Served]:
    """For AUTH alone."""
    with serving(studio, mcp=HAS_MCP, auth=AUTH) as served:
        yield served
