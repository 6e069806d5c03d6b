"""`app.py` as a process of its own, which can be killed and started again."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image
from tiny_gates import write_gates
from tiny_loras import write_lora
from tiny_mixlora import tiny_mixlora, write_mixlora
from tiny_weights import write_weights

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds for what takes two on an idle machine
HOSTILE = '<img src=x onerror="window.hacked=1">${window.hacked=2}'


@dataclass
class App:
    """An app at a port of its own: its model, its folders and its process."""

    model: Path
    loras: Path
    root: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=lambda: _free_port())
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def outputs(self) -> Path:
        """What it writes."""
        return self.root / "outputs"

    def serve(self, *options: str) -> None:
        """See to it that it runs, and with these options."""
        if self.process is not None and self.process.poll() is None and self.options == options:
            return
        self.kill()
        self.options = options
        command = [
            sys.executable, "app.py", "--port", str(self.port), "--no-open", "--device", "cpu",
            "--model", str(self.model), "--lora-dir", str(self.loras),
            "--output-dir", str(self.outputs), *options,
        ]  # fmt: skip
        log = self.root / "app.log"
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )
        _wait_for(self.address, self.process, log)

    def kill(self) -> None:
        """At once: it has no time to save anything."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)


@contextlib.contextmanager
def serving(model: Path, loras: Path, root: Path) -> Iterator[App]:
    """`python app.py` with this model and these LoRAs; what it writes goes below `root`."""
    app = App(model, loras, root)
    try:
        app.serve()
        yield app
    finally:
        if app.process is not None:
            app.process.terminate()
            app.process.wait(20)


def write_files(loras: Path, model: Path) -> None:
    """What the pages offer for this model: LoRAs, one of them hostile, one broken, one for another
    model; gates and tuned weights for Zibo and Neon, and gates for another model and broken ones;
    a MixLoRA that knows what Zora's LoRA calls."""
    made = {
        "zibo": ("Zibo", "character", "zibo fox", "coral"),
        "neon": ("Neon", "style", "in neon style", "navy"),
        "moon": ("On the moon", "background", "on the moon", "slategrey"),
        "evil": (HOSTILE, "object", HOSTILE, "black"),
        "zora": ("Zora", "other", "zora cat", "gold"),
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
    foreign = {"modelspec.title": "Foreign", "modelspec.trigger_phrase": "foreign"}
    write_lora(loras / "foreign.safetensors", seed=9, width=768, **foreign)

    pair = {name: loras / f"{name}.safetensors" for name in ("zibo", "neon")}
    write_gates(loras / "gates" / "pair.safetensors", model, pair)
    write_gates(loras / "gates" / "alien.safetensors", model, pair, model_hash="0" * 64)
    (loras / "gates" / "cut.safetensors").write_bytes(b"\x40" + bytes(20))
    write_weights(loras / "weights" / "pair.json", model, pair, {"neon": 1.2, "zibo": 0.8})
    both = tiny_mixlora(model, ("zora cat", "tavo robot"))
    write_mixlora(loras / "mixlora" / "both.safetensors", both)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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
