"""What building a model needs beside its stages: processes of their own, and an account."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from composer.errors import ComposerError
from toybox.loop import counts
from toybox.machine import describe_machine


def in_process(name: str, command: Sequence[str], log: Path) -> None:
    """A stage as a fresh interpreter, so that its memory and threads are its own; what it prints
    is kept in `log` too."""
    print(f"== {name}: {' '.join(command[1:])}", flush=True)
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("a") as kept:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            kept.write(line)
            kept.flush()
    if process.wait():
        raise ComposerError(
            f"Stage {name} failed: its log is {log}. Run again to go on from there."
        )


def write_account(work: Path, out: Path, start: Path | None = None) -> None:
    """`training.json`: how many pictures and minutes each stage took, on what machine.

    A stage that was not run again keeps what was written of it, here or in `start`.
    """
    account = out / "training.json"
    stages: dict[str, dict[str, float | str]] = {}
    for written in (start / account.name if start else account, account):
        if written.exists():
            stages |= json.loads(written.read_text())
    for name in ("vae", "clip", "unet", "decoder", "oracle"):
        path = work / f"{name}.safetensors"
        if path.exists():
            steps, pictures, seconds = counts(path)
            minutes = round(seconds / 60, 1)
            stages[name] = {"steps": steps, "images": pictures, "minutes": minutes}
            stages[name]["machine"] = machine_words()
    account.write_text(json.dumps(stages, indent=1) + "\n", encoding="utf-8")
    print(f"model written to {out}: {megabytes(out):.1f} MB", flush=True)


def machine_words() -> str:
    """The processor or GPU, and how many cores may be used."""
    machine = describe_machine()
    return f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores"


def megabytes(folder: Path) -> float:
    """Of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
