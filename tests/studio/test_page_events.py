"""What a page asks at every event costs little, however many LoRAs there are."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from studio_pictures import ready
from tiny_gates import write_gates
from tiny_loras import write_lora

from composer.experts import LORAS
from composer.experts.hashes import tensor_hash_of


def test_gates_whose_lora_is_missing_make_no_event_read_or_scan_the_folder(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "loras"
    files = {
        name: write_lora(folder / f"{name}.safetensors", seed=i) for i, name in enumerate("ab")
    }
    write_gates(folder / "gates" / "pair.safetensors", tiny_sd, files)
    for seed in range(4):
        write_lora(folder / f"other {seed}.safetensors", seed=9 + seed)
    files["a"].rename(folder / "renamed.safetensors")
    read: list[tuple[str, str]] = []

    def noted(path: Path) -> str:
        read.append((threading.current_thread().name, path.stem))
        return tensor_hash_of(path)

    studio = ready(tiny_sd, folder, tmp_path / "outputs")
    loras = studio.libraries.loras
    loras.kind = replace(LORAS, hash=noted)
    studio.cards()
    scans: list[object] = []
    monkeypatch.setattr(loras, "scan", lambda: scans.append(loras))
    studio.offers()
    mine = {name for thread, name in read if thread == threading.current_thread().name}
    assert mine <= {"b"} and not scans
    while not studio.offers()[0]:
        time.sleep(0.01)
    assert studio.offers()[0][0].loras == ("renamed", "b")
    assert not scans
