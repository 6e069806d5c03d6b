"""`app.py` as a process of its own, on the tiny model or another."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from tiny_loras import write_lora

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds for what takes two on an idle machine
HOSTILE = '<img src=x onerror="window.hacked=1">${window.hacked=2}'


@dataclass(frozen=True)
class App:
    """A running app: its address, its folders and its process."""

    address: str
    loras: Path
    outputs: Path
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def running(model: Path, root: Path, *options: str) -> Iterator[App]:
    """`python app.py` with a few LoRAs, one of them hostile, one broken."""
    loras = root / "loras"
    made = {
        "zibo": ("Zibo", "character", "zibo fox", "coral"),
        "neon": ("Neon", "style", "in neon style", "navy"),
        "moon": ("On the moon", "background", "on the moon", "slategrey"),
        "evil": (HOSTILE, "object", HOSTILE, "black"),
    }
    for seed, (name, (title, role, trigger, colour)) in enumerate(made.items()):
        metadata = {
            "modelspec.title": title,
            "composer.role": role,
            "modelspec.trigger_phrase": trigger,
        }
        write_lora(loras / f"{name}.safetensors", seed=seed, **metadata)
        Image.new("RGB", (32, 32), colour).save(loras / f"{name}.png")
    (loras / "pickle.safetensors").write_bytes(b"\x80\x04\x95" + bytes(64))
    with serving(model, loras, root, *options) as app:
        yield app


@contextlib.contextmanager
def serving(model: Path, loras: Path, root: Path, *options: str) -> Iterator[App]:
    """`python app.py` with this model and these LoRAs; what it writes goes below `root`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "app.py", "--port", str(port), "--no-open", "--device", "cpu",
        "--model", str(model), "--lora-dir", str(loras), "--output-dir", str(root / "outputs"),
        *options,
    ]  # fmt: skip
    log = root / "app.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(address, process, log)
        yield App(address, loras, root / "outputs", process)
    finally:
        process.terminate()
        process.wait(20)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the page did not answer within {PATIENCE} s\n{log.read_text()}")
