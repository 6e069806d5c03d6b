"""What a page asks at every event costs little, however many LoRAs there are."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from studio_pictures import ready
from tiny_gates import write_gates
from tiny_loras import write_lora

from composer.experts import Library
from composer.experts.hashes import tensor_hash_of


def test_gates_whose_lora_is_missing_make_no_event_read_or_scan_the_folder(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "loras"
    loras = {
        name: write_lora(folder / f"{name}.safetensors", seed=i) for i, name in enumerate("ab")
    }
    write_gates(folder / "gates" / "pair.safetensors", tiny_sd, loras)
    for seed in range(4):
        write_lora(folder / f"other {seed}.safetensors", seed=9 + seed)
    loras["a"].rename(folder / "renamed.safetensors")
    read: list[tuple[str, str]] = []

    def noted(path: Path) -> str:
        read.append((threading.current_thread().name, path.stem))
        return tensor_hash_of(path)

    monkeypatch.setattr("composer.experts.library.tensor_hash_of", noted)
    studio = ready(tiny_sd, folder, tmp_path / "outputs")
    studio.cards()
    scans: list[Library] = []
    scan = Library.scan

    def scanned(library: Library) -> object:
        scans.append(library)
        return scan(library)

    monkeypatch.setattr(Library, "scan", scanned)
    studio.gate_offers()
    mine = {name for thread, name in read if thread == threading.current_thread().name}
    assert mine <= {"b"} and not scans
    while not studio.gate_offers()[0]:
        time.sleep(0.01)
    assert studio.gate_offers()[0][0].loras == ("renamed", "b")
    assert not scans
